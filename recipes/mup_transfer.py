"""Tune the learning rate on a narrow model, use it on a wide one: with muP it is the right one, without it is not.

python recipes/mup_transfer.py --wide 512 --steps 200 --learning-rates 5e-4 1e-3 2e-3 4e-3 8e-3 1.6e-2 3.2e-2
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.models.families import resolve
from lmxlab.training import NonFiniteLoss
from lmxlab.training.coordinate_check import widened


@dataclass
class Options:
    arch: str = "llama_tiny"
    """A preset or an architecture of `lmxlab list`; its width is changed."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    narrow: int = 64
    """d_model of the model that is tuned, muP's base."""
    wide: int = 192
    """d_model of the model that gets its learning rate."""
    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
    """What is tried; should reach beyond the best on both sides."""
    steps: int = 60
    """Training steps of 8 x 64 characters."""
    picture: Path = Path("mup_transfer.png")
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, rates = (3, options.learning_rates[:2]) if options.quick else (options.steps, options.learning_rates)
    prepared = prepare(DataConfig(dataset=options.dataset))
    curves: dict[str, list[float]] = {}
    for name, width, mup in (
        (f"width {options.narrow}", options.narrow, True),
        (f"width {options.wide}, muP", options.wide, True),
        (f"width {options.wide}, standard", options.wide, False),
    ):
        curves[name] = [final_loss(options, prepared, width, mup, rate, steps) for rate in rates]
        print(f"{name:<22} " + "  ".join(f"{r:.1e}: {loss:.3f}" for r, loss in zip(rates, curves[name], strict=True)))
    narrow, *wides = curves
    tuned = int(np.argmin(curves[narrow]))
    print(f"\nthe best learning rate at {narrow} is {rates[tuned]:.1e}")
    for name in wides:
        best = int(np.argmin(curves[name]))
        lost = curves[name][tuned] - curves[name][best]
        print(f"{name:<22} with it: {curves[name][tuned]:.3f}; with its own best, {rates[best]:.1e}, {lost:.3f} less")
    draw(options, rates, curves, tuned)
    print(f"picture: {options.picture}")


def final_loss(options: Options, prepared: PreparedData, width: int, mup: bool, rate: float, steps: int) -> float:
    """Validation loss in nats per character after `steps` steps; infinite if it diverged."""
    config = dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size)
    mx.random.seed(options.seed)
    # At the base width both are the same but for the scale of attention, so one curve serves as the narrow one of both.
    model = lmxlab.LanguageModel(widened(config, width, options.narrow if mup else None))
    settings = lmxlab.TrainConfig(learning_rate=rate, max_steps=steps, warmup_steps=max(1, steps // 10))
    trainer = lmxlab.Trainer(model, settings)
    try:
        trainer.train(TokenBatches(prepared.train, 8, 64, seed=options.seed))
    except NonFiniteLoss:
        return math.inf
    return trainer.evaluate(lambda: eval_batches(prepared.val, 16, 64, 16 * 64 * 8))["eval_loss"]


def draw(options: Options, rates: tuple[float, ...], curves: dict[str, list[float]], tuned: int) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(7, 4.5), dpi=130, layout="constrained")
    axes = figure.subplots()
    for (name, losses), colour in zip(curves.items(), ("#0072B2", "#009E73", "#D55E00"), strict=True):
        axes.plot(rates, losses, color=colour, marker="o", markersize=4, label=name)
        best = int(np.argmin(losses))
        axes.plot(rates[best], losses[best], color=colour, marker="*", markersize=15)
    axes.axvline(rates[tuned], color="grey", linestyle=":", label="tuned on the narrow model")
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="learning rate", ylabel="validation loss, nats per character", title="Which learning rate is best?")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.picture)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
