"""What the knobs of sampling do to a text: temperature, top-k, top-p, min-p, penalty, bias, stop strings, seeds.

python recipes/advanced_sampling.py --prompt "To be" --tokens 120 --steps 600
"""

from dataclasses import dataclass
from typing import Any

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, TokenBatches, prepare
from lmxlab.inference import beam_search, best_of_n
from lmxlab.models.llama import llama_tiny
from lmxlab.models.sampling import Sampler


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    steps: int = 200
    """Training steps of 16 x 64 characters."""
    prompt: str = "KING"
    tokens: int = 60
    """Characters to write with each setting."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, penalty 1.5": {"temperature": 0.0, "repetition_penalty": 1.5},
    "temperature 1": {},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1.5": {"temperature": 1.5},
    "1.5, top-k 5": {"temperature": 1.5, "top_k": 5},
    "1.5, top-p 0.8": {"temperature": 1.5, "top_p": 0.8},
    "1.5, min-p 0.1": {"temperature": 1.5, "min_p": 0.1},
    "1.5, all three": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "compose": True},
}


def main(options: Options) -> None:
    steps, tokens = (3, 20) if options.quick else (options.steps, options.tokens)
    prepared = prepare(DataConfig(dataset=options.dataset))
    tokenizer = prepared.tokenizer
    mx.random.seed(options.seed)
    config = llama_tiny()
    model = lmxlab.LanguageModel(type(config).from_dict(config.to_dict() | {"vocab_size": prepared.vocab_size}))
    settings = lmxlab.TrainConfig(learning_rate=3e-3, max_steps=steps, warmup_steps=steps // 10, seed=options.seed)
    lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    prompt = mx.array([tokenizer.encode(options.prompt)])

    def show(name: str, text: mx.array) -> None:
        print(f"{name:<24} {tokenizer.decode(text.tolist())!r}")

    print("The same seed, different settings")
    for name, setting in SETTINGS.items():
        show(name, lmxlab.generate(model, prompt, tokens, seed=options.seed, **setting)[0])

    print("\nHow many of the next characters each limit leaves")
    logits = model(prompt)[0][:, -1]
    for name, sampler in {
        "none": Sampler(),
        "top-k 5": Sampler(top_k=5),
        "top-p 0.8": Sampler(top_p=0.8),
        "min-p 0.1": Sampler(min_p=0.1),
    }.items():
        print(f"{name:<24} {int((sampler.probabilities(logits) > 0).sum().item())} of {prepared.vocab_size}")

    print("\nSteering and stopping")
    options_of_all: dict[str, Any] = {"max_tokens": tokens, "seed": options.seed, "temperature": 0.8}
    (e,) = tokenizer.encode("e")
    show("without the letter e", lmxlab.generate(model, prompt, logit_bias={e: float("-inf")}, **options_of_all)[0])
    stopped = lmxlab.generate(model, prompt, stop_strings=["\n", ". "], tokenizer=tokenizer, **options_of_all)
    show("up to the end of a line", stopped[0])

    print("\nPrompts of different lengths, decoded together")
    starts = [mx.array(tokenizer.encode(text)) for text in (options.prompt, "My lord, I", "A")]
    for text in lmxlab.generate(model, starts, **options_of_all):
        show("", text)

    print("\nSeveral texts, one chosen")
    show("the likeliest of 8", best_of_n(model, prompt, 8, tokens, 0.8, seed=options.seed)[0])
    for text, score in beam_search(model, prompt, 2, tokens):
        show(f"beam, log-prob {score:.1f}", text[0])


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
