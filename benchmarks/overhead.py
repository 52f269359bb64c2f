"""What Trainer.train adds to the bare compiled step, how long starting takes, and what counting a large model takes.

    python benchmarks/overhead.py

Trainer and bare step take turns in one process, on the model of nanoGPT's CPU setting (4 x 128, batch 12 x 64).
"""

import dataclasses
import resource
import statistics
import subprocess
import sys
import time

import lmxlab
import mlx.core as mx
import numpy as np
from lmxlab.data import TokenBatches
from lmxlab.models.gpt import gpt_config
from lmxlab.training import TrainConfig, standard_callbacks

STEPS, ROUNDS = 50, 12


def trainer_overhead() -> float:
    """Median over rounds of (Trainer.train with the standard callbacks) / (bare compiled step) - 1."""
    tokens = np.random.default_rng(0).integers(0, 65, 1_000_000).astype(np.uint16)
    batches = TokenBatches(tokens, 12, 64)
    quiet = standard_callbacks(log_interval=10**9, tokens_per_step=12 * 64, flops_per_step=1e9)
    trainer = lmxlab.Trainer(
        lmxlab.LanguageModel(gpt_config(65, 128, 4, 4, 512, 64)), TrainConfig(max_steps=1), None, quiet
    )
    x, y = next(iter(batches))
    ratios = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        for _ in range(STEPS):
            loss, norm = trainer._steps.update(x, y)
            mx.eval(trainer._steps.state, loss, norm)
        bare = time.perf_counter() - start
        trainer.config = dataclasses.replace(trainer.config, max_steps=trainer.step + STEPS)
        start = time.perf_counter()
        trainer.train(batches)
        ratios.append((time.perf_counter() - start) / bare - 1)
    return statistics.median(ratios[1:])


def fastest(command: list[str], runs: int = 10) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def peak_mb() -> float:
    """The largest resident set of any child process so far."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> None:
    python = sys.executable
    interpreter = fastest([python, "-c", "pass"])
    print(f"python -c pass:   {interpreter:.3f} s")
    print(f"import lmxlab:    {fastest([python, '-c', 'import lmxlab']) - interpreter:.3f} s beyond that")
    names = "from lmxlab import LanguageModel, Trainer, generate"
    print(f"its main names:   {fastest([python, '-c', names]) - interpreter:.3f} s beyond that")
    print(f"lmxlab --help:    {fastest([python, '-m', 'lmxlab', '--help']):.3f} s in all")
    seconds = fastest([python, "-m", "lmxlab", "count", "deepseek_v3"])
    print(f"lmxlab count deepseek_v3: {seconds:.3f} s in all, and no command above held more than {peak_mb():.0f} MB")
    print(f"Trainer overhead: {trainer_overhead():+.1%} over the bare compiled step")


if __name__ == "__main__":
    main()
