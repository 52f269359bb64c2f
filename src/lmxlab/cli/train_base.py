"""Where the settings of `lmxlab train` start from, which flags then change: a design, a file, a model, a stored run."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmxlab.cli.data import default
from lmxlab.cli.options import RUNS
from lmxlab.cli.runs import find_run
from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError
from lmxlab.experiments.designs import Design, find_design
from lmxlab.experiments.loaded import base_config, base_tokenizer
from lmxlab.experiments.methods import Method, find_method
from lmxlab.experiments.spec import LAB_OPTIM, SECTIONS, RunSpec, from_table, method_from_table
from lmxlab.experiments.stored import read_spec
from lmxlab.training.config import TrainConfig

DEFAULT_DESIGN = "gpt"
LONGEST_EXAMPLE = 512  # where the model could see more, and nothing is said


@dataclass(frozen=True)
class TrainBase:
    """What the flags change: the settings of a design, a config file or a stored run.

    Attributes:
        source: as typed; None for a stored run.
        model: `(vocab_size, seq_len) -> ModelConfig`.
        values: the other fields of RunSpec that are known.
    """

    source: str | None
    model: Callable[[int, int], ModelConfig]
    values: dict[str, Any]

    def get(self, name: str) -> Any:
        default = next(f for f in dataclasses.fields(RunSpec) if f.name == name)
        return self.values.get(name, default.default)


def read_base(arguments: list[str]) -> TrainBase:
    """Where the flags start from: `train DESIGN ...`, else the run of --resume, else the default design."""
    source = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("-") else None
    if source is None and (run := _option(arguments, "--resume")) is not None:
        spec = read_spec(find_run(run, Path(_option(arguments, "--runs") or RUNS)))
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(RunSpec)}
        return TrainBase(None, lambda vocab_size, seq_len: spec.model, values)
    design = _design(source, _option(arguments, "--pretrained"))
    table = design.settings
    values = {key: value for key, value in table.items() if key not in (*SECTIONS, "model", "method")}
    values |= {section: from_table(kind, table.get(section, {}), section) for section, kind in SECTIONS.items()}
    values["method"] = method = _method(table.get("method", {}), _option(arguments, "--method"))
    if "dataset" not in table.get("data", {}):
        values["data"] = dataclasses.replace(values["data"], dataset=default())
    if pretrained := table.get("pretrained"):
        if "tokenizer" not in table.get("data", {}):
            values["data"] = dataclasses.replace(values["data"], tokenizer=base_tokenizer(pretrained))
        if not method.of_text:
            values.setdefault("seq_len", min(base_config(pretrained).block.max_seq_len, LONGEST_EXAMPLE))
    lab = {**LAB_OPTIM.to_dict(), "learning_rate": method.learning_rate}
    values["optim"] = from_table(TrainConfig, {**lab, **table.get("optim", {})}, "optim")
    return TrainBase(source or (None if pretrained else DEFAULT_DESIGN), design.model, {"name": design.name, **values})


def _design(source: str | None, pretrained: str | None) -> Design:
    """The design that is named, or the model of --pretrained as one."""
    if pretrained is None:
        return find_design(source or DEFAULT_DESIGN)
    named = None if source is None else find_design(source)
    if named is not None and not source.endswith((".toml", ".json")):  # type: ignore[union-attr]
        raise UserError(f"{source} and --pretrained {pretrained} both say what the model is: leave one out.")
    settings = {**(named.settings if named else {}), "pretrained": pretrained}
    if "model" in settings:
        raise UserError(f"[model] and --pretrained {pretrained} both say what the model is: leave one out.")
    name = named.name if named else Path(pretrained).name.partition(":")[0]
    return Design(name, lambda vocab_size, seq_len: base_config(pretrained), settings)


def _method(table: dict[str, Any], name: str | None) -> Method:
    """The method of the [method] table, or the one that --method names, with the table's settings if it is the same."""
    if name is None or name == table.get("name"):
        return method_from_table(table)
    return find_method(name)()


def _option(arguments: list[str], flag: str) -> str | None:
    """The value after `flag`, looked up before tyro parses: it decides what tyro's defaults are."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None
