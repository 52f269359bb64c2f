"""Stop a run in the middle, go on from its checkpoint, and end exactly where an uninterrupted run ends.

python recipes/checkpoint_resume.py --optimizer normuon --steps 60 --stop 25
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, prepare
from lmxlab.models.families import resolve
from lmxlab.training import EarlyStopping, LossCurvatureCallback
from lmxlab.training.events import Callback
from mlx.utils import tree_flatten


@dataclass
class Options:
    arch: str = "llama_tiny"
    """A preset or an architecture of `lmxlab list`."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    optimizer: str = "adamw"
    """adamw, lion, adafactor, sgd, muon, normuon or schedule_free."""
    steps: int = 80
    """Training steps of 2 x 8 x 64 tokens: gradients are accumulated over two batches."""
    stop: int = 30
    """The step after which the run is cut off."""
    dropout: float = 0.1
    """Draws random numbers, so that the state of the generator counts, too."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


class StopAfter(Callback):
    """What an interrupt, a budget or a crash does to a run."""

    def __init__(self, step: int):
        self.step = step
        self.should_stop = False

    def on_step_end(self, step: int, metrics: dict) -> None:
        self.should_stop = step >= self.step


def trainer(options: Options, prepared: PreparedData, steps: int, model_seed: int) -> lmxlab.Trainer:
    config = resolve(options.arch)
    block = dataclasses.replace(config.block, dropout=options.dropout)
    mx.random.seed(model_seed)
    model = lmxlab.LanguageModel(dataclasses.replace(config, block=block, vocab_size=prepared.vocab_size))
    settings = lmxlab.TrainConfig(
        learning_rate=3e-3, max_steps=steps, warmup_steps=5, grad_accumulation_steps=2, optimizer=options.optimizer
    )
    return lmxlab.Trainer(model, settings, callbacks=[EarlyStopping(), LossCurvatureCallback()])


def main(options: Options) -> None:
    steps, stop = (4, 2) if options.quick else (options.steps, options.stop)
    prepared = prepare(DataConfig(dataset=options.dataset))
    data = lambda: TokenBatches(prepared.train, 8, 64, seed=options.seed)  # noqa: E731

    whole = trainer(options, prepared, steps, options.seed)
    expected = whole.train(data())
    print(f"uninterrupted: {steps} steps with {options.optimizer}, loss {expected[-1]['loss']:.6f}")

    with tempfile.TemporaryDirectory() as folder:
        first = trainer(options, prepared, steps, options.seed)
        first.callbacks.append(StopAfter(stop))
        history = first.train(data())
        first.save(Path(folder) / "checkpoint")
        files = {path.name: path.stat().st_size for path in sorted((Path(folder) / "checkpoint").iterdir())}
        print(f"cut off after step {first.step}; the checkpoint: {files} bytes")

        # Everything of the second trainer is wrong until it is restored: weights, optimizer, random state, data cursor.
        second = trainer(options, prepared, steps, options.seed + 1)
        mx.random.seed(12345)
        second.restore(Path(folder) / "checkpoint")
        history += second.train(data())
    print(f"resumed:       {len(history)} steps in two parts, loss {history[-1]['loss']:.6f}")

    weights = [dict(tree_flatten(t.model.parameters())) for t in (whole, second)]
    same = all(mx.array_equal(weights[0][name], weights[1][name]).item() for name in weights[0])
    print(f"every metric of every step is the same: {history == expected}")
    print(f"every weight is the same, bit for bit:   {same}")
    if not (same and history == expected):
        raise SystemExit("resuming changed the run")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
