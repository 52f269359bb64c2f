"""Load a pretrained model from a Hugging Face folder or repo: what it is, how well it knows a text, what it writes.

python recipes/load_pretrained.py --model path/to/folder --dtype bfloat16 --quantize 4 --prompt "The capital is"

Without --model it is the embedded glassllm, written as such a folder first, so nothing is downloaded.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lmxlab  # noqa: F401  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import HFTokenizer, load_glassllm, load_tokenizer
from lmxlab.data.hf_files import tokenizer_files
from lmxlab.eval import bits_per_byte
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text
from mlx.utils import tree_flatten

TEXT = "Alice was not a bit hurt, and she jumped up on to her feet in a moment: she looked up, but it was all dark."


@dataclass
class Options:
    model: str = ""
    """A folder that save_pretrained or `lmxlab export` wrote, or a repo of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a repo."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantize: int | None = None
    """Bits per weight: 1, 2, 3, 4, 5, 6 or 8; each matrix is quantised as it is read."""
    prompt: str = "Once upon a time"
    text: str = TEXT
    """What bits per byte are measured on."""
    max_tokens: int = 60
    temperature: float = 0.7
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def embedded(folder: Path) -> Path:
    """The embedded model as a Hugging Face folder, in several shards as large models are."""
    model, tokenizer = load_glassllm()
    files = tokenizer_files(tokenizer, model.config.block.max_seq_len)
    export_model(model, folder, files=files, shard_bytes=1_000_000)
    return folder


def main(options: Options, scratch: Path) -> None:
    name = options.model or str(embedded(scratch / "glassllm"))
    start = time.perf_counter()
    model, config = load_from_hf(name, options.revision, getattr(mx, options.dtype), options.quantize)
    seconds = time.perf_counter() - start
    size = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    block = config.block
    print(
        f"{options.model or 'glassllm'}: {model.count_parameters():,} parameters, {size / 1e6:.1f} MB, {seconds:.2f} s"
    )
    print(
        f"  {config.n_layers} layers of {block.attention} and {block.ffn}, {block.d_model} wide; "
        f"{block.max_seq_len} tokens of context"
    )

    tokenizer = load_tokenizer(name) if Path(name).is_dir() else HFTokenizer(name)
    ids = mx.array([tokenizer.encode(options.text)])
    bits = bits_per_byte(model, ids, token_bytes=tokenizer.token_bytes())
    print(f"  bits per byte of {options.text[:40]!r} ...: {bits:.3f}")

    print(f"\n{options.prompt}", end="")
    sampler = Sampler(options.temperature)
    count = 10 if options.quick else options.max_tokens
    for piece in stream_text(model, tokenizer, tokenizer.encode(options.prompt), count, sampler, seed=options.seed):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        main(tyro.cli(Options, description=__doc__), Path(root))
