"""What a model keeps while it decodes, and what that costs: full, shared, latent, windowed, quantised, recurrent.

python recipes/compare_kv_cache.py --steps 300 --context 4096 --designs mha gqa mla gated_deltanet
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core import BlockConfig, ModelConfig
from lmxlab.core.kernels import cross_entropy
from lmxlab.data import DataConfig, TokenBatches, prepare
from mlx.utils import tree_flatten

# Name -> the mixer, from the options; all else is the same in every model.
DESIGNS: dict[str, Callable[["Options"], dict[str, Any]]] = {
    "mha": lambda o: {"attention": "mha"},
    "gqa": lambda o: {"attention": "gqa", "n_kv_heads": o.kv_heads},
    "mla": lambda o: {"attention": "mla", "kv_lora_rank": o.latent, "rope_dim": o.width // o.heads // 2},
    "sliding_window_gqa": lambda o: {
        "attention": "sliding_window_gqa",
        "n_kv_heads": o.kv_heads,
        "window_size": o.window,
    },
    "gated_deltanet": lambda o: {"attention": "gated_deltanet", "position": "none", "use_short_conv": True},
}


@dataclass
class Options:
    designs: tuple[str, ...] = tuple(DESIGNS)
    """Which mixers."""
    bits: tuple[int, ...] = (8, 4)
    """Quantised caches of the gqa model, too."""
    layers: int = 2
    width: int = 64
    heads: int = 2
    kv_heads: int = 1
    latent: int = 16
    """Channels of MLA's latent."""
    window: int = 16
    """Tokens that the sliding window shows."""
    steps: int = 100
    """Training steps of 16 x 64 tokens for each model."""
    learning_rate: float = 3e-3
    context: int = 1024
    """Tokens that the sizes are told for."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, context, rows = (2, 512, 1) if options.quick else (options.steps, options.context, 16)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer="char"))
    text = mx.array(prepared.val[: rows * 64].astype("int32")).reshape(rows, 64)
    print(f"{steps} steps each on {prepared.info['source']}; sizes after {context} tokens of one sequence")
    print(f"{'cache':22}{'parameters':>12}{'KB':>9}{'bytes/token':>13}{'bits per character':>20}")
    for name in options.designs:
        model = train(name, options, prepared, steps)
        report(name, model, text, context, bits=None)
        if name == "gqa":
            for bits in options.bits:
                report(f"gqa, {bits} bits", model, text, context, bits)


def train(name: str, options: Options, prepared: Any, steps: int) -> lmxlab.LanguageModel:
    common = {
        **{"ffn": "gated", "norm": "rms_norm", "position": "rope", "bias": False, "max_seq_len": 64},
        **{"d_model": options.width, "n_heads": options.heads, "d_ff": 8 * round(options.width / 3)},
    }
    block = BlockConfig(**{**common, **DESIGNS[name](options)})
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(ModelConfig(block, prepared.vocab_size, options.layers))
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    return model


def report(name: str, model: lmxlab.LanguageModel, text: mx.array, context: int, bits: int | None) -> None:
    model.eval()
    half, whole = (kept_bytes(model, length, bits) for length in (context // 2, context))
    growth = (whole - half) / (context - context // 2)
    quality = bits_per_character(model, text, bits)
    print(f"{name:22}{model.count_parameters():>12,}{whole / 1024:>9.1f}{growth:>13.0f}{quality:>20.3f}")


def kept_bytes(model: lmxlab.LanguageModel, length: int, bits: int | None) -> int:
    """What the arrays of the caches take after `length` tokens, read in parts as a prompt is."""
    cache = model.make_cache(bits=bits)
    for start in range(0, length, 256):
        model(mx.zeros((1, min(256, length - start)), mx.int32), cache=cache)
        arrays = [a for entry in cache for _, a in tree_flatten(entry.snapshot()) if isinstance(a, mx.array)]
        mx.eval(arrays)
    return sum(array.nbytes for array in arrays)


def bits_per_character(model: lmxlab.LanguageModel, text: mx.array, bits: int | None) -> float:
    """Of text that is read through the cache, 8 tokens at a time, so that what is kept is what is used."""
    cache, nats = model.make_cache(bits=bits), []
    for start in range(0, text.shape[1] - 1, 8):
        part, after = text[:, start : start + 8], text[:, start + 1 : start + 9]
        logits, cache = model(part, cache=cache)
        nats.append(cross_entropy(logits[:, : after.shape[1]], after))
    return float(mx.concatenate(nats, axis=1).mean()) / math.log(2)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
