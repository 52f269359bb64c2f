"""Time and memory of one training step against PyTorch eager and against the plain MLX wheel, each in its own process.

    python benchmarks/train_step.py [--rounds 3] [--seconds 5] [--no-plain] [--avx2]

The contenders take turns, so that a busy machine is busy for all of them; a ratio is the median over rounds of
the ratio of their median step times. Each chooses the instructions it uses by itself: variables of the environment that
prescribe them are left out, unless --avx2 holds all of them to AVX2, as an older processor would.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SIZES = {
    "4 x 128, 12 x 64, vocabulary 65": (4, 128, 4, 12, 64, 65),
    "6 x 384, 8 x 256, vocabulary 65": (6, 384, 6, 8, 256, 65),
    "4 x 256, 16 x 256, vocabulary 8192": (4, 256, 4, 16, 256, 8192),
}
# What OpenBLAS (lmxlab), MKL, oneDNN and PyTorch read to choose their kernels.
AVX2 = {
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
PLAIN = {"LMXLAB_BLAS": "off", "LMXLAB_EXACT": "1"}


def worker(size: tuple[int, ...], seconds: float, steps: int) -> None:
    """At least `steps` steps of lmxlab's Trainer, the first two of them left out."""
    import dataclasses
    import time

    import lmxlab  # before mlx, for its BLAS
    import mlx.core as mx
    from lmxlab.models.gpt import gpt_config
    from lmxlab.platform import peak_memory_bytes

    layers, width, heads, batch, length, vocab = size
    config = gpt_config(vocab, width, heads, layers, 4 * width, length)
    config = dataclasses.replace(config, block=dataclasses.replace(config.block, position="learned"), embed_scale=1.0)
    mx.random.seed(0)
    trainer = lmxlab.Trainer(lmxlab.LanguageModel(config), lmxlab.TrainConfig(weight_decay=0.1))
    x, y = mx.random.randint(0, vocab, (2, batch, length))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < steps or time.perf_counter() < end:
        start = time.perf_counter()
        trainer.train_step((x, y))
        times.append(time.perf_counter() - start)
    print(json.dumps({"times_s": times[2:], "peak_mb": peak_memory_bytes() / 2**20}))


def run(command: list[str], settings: dict[str, str]) -> dict:
    inherited = {name: value for name, value in os.environ.items() if name not in AVX2}
    done = subprocess.run([sys.executable, *command], env={**inherited, **settings}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--no-plain", action="store_true", help="leave the plain wheel out: it takes minutes")
    parser.add_argument("--avx2", action="store_true", help="no contender may use AVX-512")
    parser.add_argument("--worker", nargs=3, metavar=("SIZE", "SECONDS", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(tuple(json.loads(args.worker[0])), float(args.worker[1]), int(args.worker[2]))
        return

    from lmxlab.platform import physical_cores

    here, settings = Path(__file__), AVX2 if args.avx2 else {}
    for name, size in SIZES.items():
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(run([str(here), "--worker", json.dumps(size), str(args.seconds), "5"], settings))
            peer = [str(here.with_name("torch_gpt.py")), json.dumps(size), str(args.seconds), str(physical_cores())]
            theirs.append(run(peer, settings))
        times = [[statistics.median(r["times_s"]) for r in results] for results in (ours, theirs)]
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        memory = max(r["peak_mb"] for r in ours) / max(r["peak_mb"] for r in theirs)
        print(f"{name} (layers x width, batch x length)")
        print(f"  lmxlab  {min(times[0]) * 1e3:8.1f} ms/step {max(r['peak_mb'] for r in ours):6.0f} MB")
        print(f"  PyTorch {min(times[1]) * 1e3:8.1f} ms/step {max(r['peak_mb'] for r in theirs):6.0f} MB")
        print(f"  ratio to PyTorch: time {ratio:.2f}, memory {memory:.2f}")
        if not args.no_plain:
            plain = run([str(here), "--worker", json.dumps(size), "0", "4"], {**settings, **PLAIN})
            slower = min(plain["times_s"]) / min(times[0])
            print(f"  plain MLX wheel {min(plain['times_s']) * 1e3:8.1f} ms/step: {slower:.1f} times as long")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
