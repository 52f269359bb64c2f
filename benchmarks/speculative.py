"""Tokens per second of speculative decoding against plain decoding, with a drafter trained on the same text.

    python benchmarks/speculative.py [--width 512 --layers 12 --steps 300 --tokens 256 --rounds 5]

Target and drafter are trained in the script on one text, then plain and speculative decoding take turns on the same
prompts, greedy and at temperature 0.8. The bar is 1.3x, with the distribution unchanged
(tests/inference/test_speculative.py holds it to that); greedy texts are compared here.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lmxlab
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, prepare
from lmxlab.inference import speculative_decode
from lmxlab.models.llama import llama_config


@dataclass
class Options:
    width: int = 512
    layers: int = 12
    draft_width: int = 128
    draft_layers: int = 2
    tokenizer: str = "bpe:1024"
    steps: int = 300
    """Training steps of the target, of 8 x 128 tokens."""
    draft_steps: int = 1500
    """Of the drafter, which is much cheaper."""
    draft_tokens: tuple[int, ...] = (2, 3, 4, 6)
    prompt_tokens: int = 64
    tokens: int = 256
    rounds: int = 5
    seed: int = 0


def train(prepared: PreparedData, width: int, layers: int, steps: int, options: Options) -> lmxlab.LanguageModel:
    mx.random.seed(options.seed)
    heads = max(1, width // 64)
    size = {"d_model": width, "n_heads": heads, "n_kv_heads": heads, "n_layers": layers, "d_ff": width * 8 // 3}
    model = lmxlab.LanguageModel(llama_config(vocab_size=prepared.vocab_size, max_seq_len=1024, **size))
    settings = lmxlab.TrainConfig(learning_rate=1e-3, max_steps=steps, warmup_steps=steps // 10, seed=options.seed)
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 8, 128, seed=options.seed))
    print(f"{layers} x {width}: {model.count_parameters() / 1e6:.1f} M parameters, loss {losses[-1]['loss']:.2f}")
    return model


def timed(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, mx.array, dict[str, float]]:
    start = time.perf_counter()
    out = function(*args, **options)
    text, rates = out if isinstance(out, tuple) else (out, {})
    mx.eval(text)
    return time.perf_counter() - start, text, rates


def main(options: Options) -> None:
    prepared = prepare(DataConfig(tokenizer=options.tokenizer))
    target = train(prepared, options.width, options.layers, options.steps, options)
    draft = train(prepared, options.draft_width, options.draft_layers, options.draft_steps, options)
    starts = [1000 * (i + 1) for i in range(options.rounds)]
    prompts = [mx.array(prepared.val[s : s + options.prompt_tokens].astype("int32"))[None] for s in starts]
    lmxlab.generate(target, prompts[0], 8)
    speculative_decode(target, draft, prompts[0], 8)
    print("\n| temperature | draft tokens | plain tokens/s | speculative tokens/s | ratio | accepted | equal tokens |")
    print("|---|---|---|---|---|---|---|")
    for temperature in (0.0, 0.8):
        for n in options.draft_tokens:
            settings = {"temperature": temperature, "seed": options.seed}
            plain_s, fast_s, rates, equal = [], [], [], []
            for prompt in prompts:
                seconds, plain, _ = timed(lmxlab.generate, target, prompt, options.tokens, **settings)
                plain_s.append(seconds)
                args = (target, draft, prompt, options.tokens, n)
                seconds, text, found = timed(speculative_decode, *args, **settings)
                fast_s.append(seconds)
                rates.append(found["acceptance_rate"])
                equal.append((plain == text).mean().item())
            ratio = statistics.median(p / f for p, f in zip(plain_s, fast_s, strict=True))
            same = f"{statistics.mean(equal):.0%}" if temperature == 0 else ""
            print(
                f"| {temperature} | {n} | {options.tokens / statistics.median(plain_s):,.1f} "
                f"| {options.tokens / statistics.median(fast_s):,.1f} | {ratio:.2f}x "
                f"| {statistics.mean(rates):.0%} | {same} |"
            )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
