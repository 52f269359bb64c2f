"""Quantise a pretrained model in every mode of MLX: what it weighs, what it loses, and what it writes.

python recipes/quantize_and_generate.py --prompt "The old man" --max-tokens 60
python recipes/quantize_and_generate.py --model FOLDER_OR_REPO --modes affine:4:64 mxfp4
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core import quantize_model
from lmxlab.data import Tokenizer, load_glassllm, load_tokenizer
from lmxlab.models import load_from_hf
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text
from mlx.utils import tree_flatten

# What the loss is measured on unless --text names a file.
TEXT = """Once upon a time there was a miller who had three sons, and when he died he left them nothing but his mill,
his donkey and his cat. The eldest took the mill, the second took the donkey, and the youngest had only the cat.
"""


@dataclass
class Options:
    model: str = "glassllm"
    """glassllm (no network), or a folder or repo of Hugging Face."""
    tokenizer: str | None = None
    """The model's: hf:REPO, or a tokenizer's JSON file. glassllm brings its own."""
    modes: tuple[str, ...] = ("affine:8:32", "affine:4:32", "affine:3:32", "affine:2:32", "mxfp8", "mxfp4", "nvfp4")
    """MODE, or affine:BITS:GROUP_SIZE."""
    prompt: str = "Once upon"
    max_tokens: int = 40
    text: Path | None = None
    """A file to measure the loss on."""
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    modes = options.modes[-2:] if options.quick else options.modes
    model, tokenizer = load(options)
    text = options.text.read_text(encoding="utf-8") if options.text else TEXT
    tokens = mx.array([tokenizer.encode(text)[: 128 if options.model == "glassllm" else 1024]])
    print(f"{'weights':14} {'MB':>8} {'loss':>7} {'tokens/s':>9}  continuation of {options.prompt!r}")
    for mode in ("whole", *modes):
        narrow = []
        if mode != "whole":
            model, _ = load(options)
            kind, *sizes = mode.split(":")
            narrow = quantize_model(model, *map(int, sizes), mode=kind, skip_narrow=True)
        size = sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6
        loss = model.eval().nats(tokens[:, :-1], tokens[:, 1:]).mean().item()
        start = time.perf_counter()
        greedy = Sampler(temperature=0.0)
        pieces = list(stream_text(model, tokenizer, tokenizer.encode(options.prompt), options.max_tokens, greedy))
        speed = options.max_tokens / (time.perf_counter() - start)
        left = f"  ({len(narrow)} layers left whole)" if narrow else ""
        print(f"{mode:14} {size:8.2f} {loss:7.3f} {speed:9.0f}  {''.join(pieces)!r}{left}")
        assert math.isfinite(loss)


def load(options: Options) -> tuple[lmxlab.LanguageModel, Tokenizer]:
    """The pretrained model and its tokenizer."""
    if options.model == "glassllm":
        return load_glassllm()
    model, _ = load_from_hf(options.model)
    return model, load_tokenizer(options.tokenizer or f"hf:{options.model}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
