"""From a text to a model that writes: prepare, train, continue a prompt.

python recipes/quickstart.py --arch gpt_tiny --steps 1000 --prompt "To be"
"""

import dataclasses
import sys
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.eval import perplexity
from lmxlab.models.families import resolve
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text


@dataclass
class Options:
    arch: str = "llama_tiny"
    """A preset or an architecture of `lmxlab list`."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    steps: int = 300
    """Training steps of 16 x 64 tokens."""
    learning_rate: float = 3e-3
    prompt: str = "KING"
    """What the trained model continues."""
    tokens: int = 300
    """How much it writes."""
    temperature: float = 0.8
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, tokens = (3, 40) if options.quick else (options.steps, options.tokens)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size))
    print(f"{options.arch}: {model.count_parameters():,} parameters, {steps} steps on {prepared.info['source']}")
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    windows = [mx.concatenate([x, y[:, -1:]], axis=1) for x, y in eval_batches(prepared.val, 16, 64, 20_000)]
    print(f"training loss {losses[0]['loss']:.2f} -> {losses[-1]['loss']:.2f}")
    print(f"perplexity of unseen text {perplexity(model, windows):.2f}\n")
    sys.stdout.write(options.prompt)
    prompt = prepared.tokenizer.encode(options.prompt)
    sampler = Sampler(options.temperature)
    for piece in stream_text(model, prepared.tokenizer, prompt, tokens, sampler, seed=options.seed, context=64):
        sys.stdout.write(piece)
        sys.stdout.flush()
    print()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
