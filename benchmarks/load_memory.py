"""Peak memory of load_from_hf against the size of the model that it returns: `python benchmarks/load_memory.py`

Writes a LLaMA with random weights in shards to a temporary folder, and loads it in a process of its own per case, so
that no case sees another's memory. The bar is 1.2: a model that fits into memory with a fifth to spare can be loaded.

Peak: the largest resident set of the process, less what it had before loading (libraries and kernels), as Linux counts
it; and MLX's own count of its buffers. Both are divided by the bytes of the loaded weights.
"""

import lmxlab  # before mlx, for its BLAS

# isort: split
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import psutil
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.llama import llama_config
from lmxlab.platform import peak_memory_bytes
from mlx.utils import tree_flatten

CASES = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "8 bit": ("bfloat16", 8),
    "4 bit": ("bfloat16", 4),
}
BAR = 1.2


def load(folder: str, dtype: str, bits: int | None) -> dict[str, float]:
    """What one case took, as ratios to the model."""
    mx.eval(mx.random.normal((256, 256)) @ mx.random.normal((256, 256)))  # libraries wake up
    before = psutil.Process().memory_info().rss
    mx.reset_peak_memory()
    model, _ = load_from_hf(folder, dtype=getattr(mx, dtype), quantize=bits)
    size = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    peak = peak_memory_bytes() - before
    return {"model_mb": size / 1e6, "resident": peak / size, "mlx": mx.get_peak_memory() / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--shard-mb", type=int, default=200)
    parser.add_argument("--case", nargs=2, metavar=("FOLDER", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(load(args.case[0], *CASES[args.case[1]])))
        return
    lmxlab.core.kernels.exact(True)  # loading compiles nothing
    heads = max(args.d_model // 64, 1)
    sizes = {"d_model": args.d_model, "n_heads": heads, "n_kv_heads": heads, "d_ff": 4 * args.d_model}
    with tempfile.TemporaryDirectory() as root:
        model = LanguageModel(llama_config(args.vocab, n_layers=args.layers, **sizes))
        n_parameters = model.count_parameters()
        export_model(model, Path(root) / "model", shard_bytes=args.shard_mb * 1_000_000)
        del model
        print(f"{n_parameters / 1e6:.0f} M parameters in float32, {args.layers} layers, {args.shard_mb} MB per shard")
        print("| loaded as | model (MB) | peak resident / model | peak of MLX's buffers / model | bar 1.2 |")
        print("|---|---|---|---|---|")
        for case in CASES:
            command = [sys.executable, __file__, "--case", f"{root}/model", case]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(out)
            kept = "kept" if max(found["resident"], found["mlx"]) <= BAR else "missed"
            print(f"| {case} | {found['model_mb']:.0f} | {found['resident']:.2f} | {found['mlx']:.2f} | {kept} |")


if __name__ == "__main__":
    main()
