"""Let a small model draft for a large one: the same text, in fewer passes of the large one.

python recipes/speculative_decoding.py --draft-tokens 2 4 8 --temperature 0.8 --steps 600

Both models are trained on the same text. On a CPU and at this size a pass costs mostly its overhead, so look at the
passes; benchmarks/speculative.py measures the time of larger models.
"""

import time
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, prepare
from lmxlab.inference import ModelDrafter, PromptLookupDrafter, speculative_decode
from lmxlab.models.llama import llama_config


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    steps: int = 200
    """Training steps of 16 x 64 characters, for each model."""
    layers: int = 4
    """Layers of the target; the drafter has one."""
    draft_tokens: tuple[int, ...] = (2, 4, 6)
    """How many tokens to draft at a time."""
    tokens: int = 200
    """How much to write."""
    temperature: float = 0.0
    """0 takes the likeliest token; else the distribution of the text is what stays the same."""
    prompt: str = "KING"
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def train(prepared: PreparedData, width: int, layers: int, steps: int, seed: int) -> lmxlab.LanguageModel:
    mx.random.seed(seed)
    size = {"d_model": width, "n_heads": 4, "n_kv_heads": 2, "n_layers": layers, "d_ff": 3 * width}
    model = lmxlab.LanguageModel(llama_config(vocab_size=prepared.vocab_size, max_seq_len=512, **size))
    settings = lmxlab.TrainConfig(learning_rate=3e-3, max_steps=steps, warmup_steps=steps // 10, seed=seed)
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=seed))
    print(f"{layers} layers of {width}: {model.count_parameters():,} parameters, loss {losses[-1]['loss']:.2f}")
    return model


def main(options: Options) -> None:
    steps, tokens = (3, 20) if options.quick else (options.steps, options.tokens)
    prepared = prepare(DataConfig(dataset=options.dataset))
    target = train(prepared, 128, options.layers, steps, options.seed)
    draft = train(prepared, 64, 1, steps, options.seed)
    prompt = mx.array([prepared.tokenizer.encode(options.prompt)])
    settings = {"temperature": options.temperature, "seed": options.seed}
    lmxlab.generate(target, prompt, 8)  # warm up
    start = time.perf_counter()
    plain = lmxlab.generate(target, prompt, tokens, **settings)
    mx.eval(plain)
    plain_s = time.perf_counter() - start
    print(f"\nplain decoding           {tokens} passes of the target, {tokens / plain_s:,.0f} tokens/s")
    for kind in ("model", "prompt lookup"):
        for n in options.draft_tokens:
            drafter = ModelDrafter(draft) if kind == "model" else PromptLookupDrafter(prepared.vocab_size)
            start = time.perf_counter()
            text, rates = speculative_decode(target, drafter, prompt, tokens, n, **settings)
            elapsed_s = time.perf_counter() - start
            passes = tokens - rates["total_accepted"]
            print(
                f"{kind + ', ' + str(n) + ' at a time':<24} about {passes:.0f} passes, "
                f"{rates['acceptance_rate']:.0%} accepted, {tokens / elapsed_s:,.0f} tokens/s"
            )
            if options.temperature == 0:
                same = int((text == plain).sum().item())
                print(f"{'':<24} {same} of {text.size} characters are those of plain decoding")
    print(f"\n{prepared.tokenizer.decode(plain[0].tolist())}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
