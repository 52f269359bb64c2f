"""What each optimizer reaches in the same steps, with the best of several rates: `python benchmarks/optimizers.py`.

A small LLaMA on Shakespeare, character by character; validation loss in nats per character. One machine's floating
point decides the last digit; the order of the first two is what counts.
"""

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Any

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.models.families import resolve
from lmxlab.training import NonFiniteLoss

MUON = (1.2e-2, 2.4e-2, 4.8e-2)
CANDIDATES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "adamw": ({}, (3e-3, 6e-3, 1.2e-2)),
    "adamw, cautious": ({"cautious_decay": True}, (3e-3, 6e-3, 1.2e-2)),
    "lion": ({}, (1.6e-3, 3.2e-3, 6.4e-3)),
    "adafactor": ({}, (0.05, 0.1, 0.2)),
    "sgd": ({}, (0.1, 0.3, 1.0)),
    "muon": ({}, MUON),
    "muon, polar express": ({"muon_iteration": "polar_express"}, MUON),
    "normuon": ({}, MUON),
    "normuon, polar express": ({"muon_iteration": "polar_express"}, MUON),
    "schedule_free": ({"lr_schedule": "constant"}, (3e-3, 6e-3, 1.2e-2)),
}


@dataclass
class Options:
    arch: str = "llama_tiny"
    steps: int = 150
    """Of 16 x 64 characters."""
    seeds: int = 1
    only: str = ""
    """Part of a name: run those alone."""


def main(options: Options) -> None:
    prepared = prepare(DataConfig())
    print("| optimizer | loss | learning rate | others |\n|---|---|---|---|")
    for name, (changes, rates) in CANDIDATES.items():
        if options.only not in name:
            continue
        losses = [
            sum(run(options, prepared, name, changes, rate, seed) for seed in range(options.seeds)) / options.seeds
            for rate in rates
        ]
        best = losses.index(min(losses))
        others = ", ".join(
            f"{r:g}: {loss:.3f}" for i, (r, loss) in enumerate(zip(rates, losses, strict=True)) if i != best
        )
        print(f"| {name} | {losses[best]:.3f} | {rates[best]:g} | {others} |")
        sys.stdout.flush()


def run(options: Options, prepared: PreparedData, name: str, changes: dict[str, Any], rate: float, seed: int) -> float:
    mx.random.seed(seed)
    model = lmxlab.LanguageModel(dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size))
    config = lmxlab.TrainConfig(
        optimizer=name.split(",")[0], learning_rate=rate, weight_decay=0.1, max_steps=options.steps,
        warmup_steps=options.steps // 10, **changes,
    )  # fmt: skip
    trainer = lmxlab.Trainer(model, config)
    try:
        trainer.train(TokenBatches(prepared.train, 16, 64, seed=seed))
    except NonFiniteLoss:
        return math.inf
    return trainer.evaluate(lambda: eval_batches(prepared.val, 16, 64, 16 * 64 * 16))["eval_loss"]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
