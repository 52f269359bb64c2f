"""What a comparison will run, settled before its first step: designs brought to one size, seeds, steps."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmxlab.core.config import ModelConfig
from lmxlab.data import DataConfig, PreparedData
from lmxlab.errors import UserError
from lmxlab.experiments.budget import TOLERANCE, count_parameters, flops_per_step, match_size, steps_within, with_steps
from lmxlab.experiments.designs import Design, find_design
from lmxlab.experiments.run import measure_step_s
from lmxlab.experiments.spec import EVAL_TOKENS, Budget, RunSpec, check_seed, from_table
from lmxlab.experiments.task import TextTask
from lmxlab.files import atomic_write, to_json
from lmxlab.training.config import TrainConfig

PLAN = "compare.json"
CURVE_POINTS = 8


@dataclass(frozen=True)
class ComparisonPlan:
    """A comparison, settled: enough to start it, or to go on with it after an interruption.

    Attributes:
        specs: one run per design, in the order they were named; the seed in it is replaced by each of `seeds`.
        seeds: shared by all designs.
        flops: the budget of each run.
        notes: what was chosen or is worth knowing, one line each.
    """

    specs: tuple[RunSpec, ...]
    seeds: tuple[int, ...]
    flops: float
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    def runs(self) -> list[RunSpec]:
        """Every run in the order they are made: seed by seed, and within a seed design by design."""
        return [dataclasses.replace(spec, seed=seed) for seed in self.seeds for spec in self.specs]

    def save(self, folder: Path) -> None:
        values = {
            "specs": [spec.to_dict() for spec in self.specs],
            "seeds": list(self.seeds),
            "flops": self.flops,
            "notes": list(self.notes),
        }
        atomic_write(folder / PLAN, to_json(values))

    @classmethod
    def load(cls, folder: Path) -> "ComparisonPlan":
        """Reads the plan of an earlier comparison; UserError when `folder` holds none."""
        try:
            values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
            specs = tuple(RunSpec.from_dict(spec) for spec in values["specs"])
            return cls(specs, tuple(values["seeds"]), float(values["flops"]), tuple(values["notes"]))
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{str(folder)!r} is no folder of a comparison ({PLAN}: {error.strerror}).") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"The plan of the comparison, {folder / PLAN}, is damaged: {error}.") from None


def make_plan(
    sources: Sequence[str],
    data: DataConfig,
    prepared: PreparedData,
    seeds: Sequence[int],
    optim: TrainConfig,
    seq_len: int = 64,
    flops: float | None = None,
    minutes: float | None = None,
    match_all: bool = False,
    eval_tokens: int = EVAL_TOKENS,
) -> ComparisonPlan:
    """Settles everything before the first step: sizes, steps, seeds.

    Args:
        sources: names or config files of the designs. From a file come the model and [optim]; data, budget, context,
            batch size and seeds are the comparison's.
        flops: budget of each run; or
        minutes: what the training of all runs together should take here: each design's speed is measured, and all get
            the same FLOPs.
        match_all: also bring designs from files and presets to the common size.

    Raises:
        UserError: fewer than two designs or seeds that repeat, sizes that cannot be matched, a budget below one step.
    """
    designs = find_designs(sources)
    for seed in seeds:
        check_seed(seed)
    for name, value in (("flops", flops), ("minutes", minutes)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value:g}.")
    if len(set(seeds)) != len(seeds) or not seeds:
        raise UserError(f"Seeds must be given and differ, got {list(seeds)}.")
    names = _distinct([design.name for design in designs])
    models = [design.model(prepared.vocab_size, seq_len) for design in designs]
    free = [design.resizable or match_all for design in designs]
    # The size to meet is that of a design which may not change; else of the first one.
    anchor = free.index(False) if False in free else 0
    target = count_parameters(models[anchor])
    specs, notes = [], []
    for index, design in enumerate(designs):
        model, size = models[index], count_parameters(models[index])
        if free[index] and index != anchor:
            sized = match_size(model, target)
            model, size = sized.model, sized.parameters
            if sized.change:
                notes.append(f"{names[index]}: {sized.change} to match the {target:,} parameters of {names[anchor]}")
        elif abs(size - target) > TOLERANCE * target:
            notes.append(
                f"{names[index]} has {size:,} parameters, {names[anchor]} {target:,}: sizes differ by "
                f"{abs(size - target) / target:.0%}; --match-all brings it to the same size"
            )
        ignored = sorted({"data", "budget", "seq_len", "seed", "eval_tokens"} & set(design.settings))
        if ignored:
            notes.append(f"{names[index]}: {', '.join(ignored)} in the file is not used: a comparison sets it for all")
        own = design.settings.get("optim", {})
        if own:
            values = ", ".join(f"{key} {value}" for key, value in sorted(own.items()) if key != "batch_size")
            notes.append(f"{names[index]} trains with the [optim] of its file ({values}), the others without")
        notes.append(f"{names[index]}: {_describe(model)}")
        table = {**dataclasses.asdict(optim), **own, "batch_size": optim.batch_size}
        specs.append(
            RunSpec(
                name=names[index],
                model=model,
                data=data,
                optim=from_table(TrainConfig, table, "optim"),
                seq_len=seq_len,
                eval_tokens=eval_tokens,
            )
        )
    if minutes is not None:
        flops = _flops_in(minutes, specs, len(seeds), prepared)
        notes.append(f"{minutes:g} min of training for all runs together: {flops:.3g} FLOPs each, as measured here")
    if flops is None:
        raise UserError("A comparison needs a budget: flops or minutes.")
    budgeted = (dataclasses.replace(spec, budget=Budget(flops=flops)) for spec in specs)
    return ComparisonPlan(tuple(map(_paced, budgeted)), tuple(seeds), flops, tuple(notes))


def find_designs(sources: Sequence[str]) -> list[Design]:
    """The designs by name or file; UserError for fewer than make a comparison, or for one that is unknown."""
    if len(sources) < 2:
        raise UserError(f"A comparison takes two designs or more, got {list(sources)}: try `lmxlab compare gpt llama`.")
    return [find_design(source) for source in sources]


def _describe(model: ModelConfig) -> str:
    """The parts of a model in a line; where its layers differ, every kind there is."""
    blocks = [model.get_block_config(layer) for layer in range(model.n_layers)]
    windows = (f" within {b.window_size} tokens" if b.window_size else "" for b in blocks)
    attention = [f"{b.attention}{window}" for b, window in zip(blocks, windows, strict=True)]
    kinds = {
        "attention": attention,
        "FFN": [b.ffn for b in blocks],
        "norm": [b.norm for b in blocks],
        "positions": [b.position for b in blocks],
    }
    parts = ", ".join(f"{' / '.join(dict.fromkeys(values))} {slot}" for slot, values in kinds.items())
    return f"{parts}; {model.n_layers} layers, {model.block.d_model} wide"


def _flops_in(minutes: float, specs: Sequence[RunSpec], n_seeds: int, prepared: PreparedData) -> float:
    """FLOPs per run such that the training of all runs takes `minutes` at the speed measured now."""
    seconds_per_flop = n_seeds * sum(
        measure_step_s(spec, TextTask(spec, prepared)) / flops_per_step(spec) for spec in specs
    )
    return minutes * 60 / seconds_per_flop


def _paced(spec: RunSpec) -> RunSpec:
    """`spec` with the steps that its budget buys, and evaluations and checkpoints evenly spaced over them."""
    steps = steps_within(spec)
    every = math.ceil(steps / CURVE_POINTS)
    optim = dataclasses.replace(spec.optim, eval_interval=every, checkpoint_interval=2 * every)
    return with_steps(dataclasses.replace(spec, optim=optim), steps)


def _distinct(names: list[str]) -> list[str]:
    """The names, a repeated one numbered: `compare a/x.toml b/x.toml` has two folders."""
    counts = dict.fromkeys(names, 0)
    distinct = []
    for name in names:
        counts[name] += 1
        distinct.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return distinct
