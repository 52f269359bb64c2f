"""What one training run is: every value that decides its result, as plain data that a file can hold.

A config file (TOML, or the `config.json` of a run folder) has the keys of `RunSpec`; what it leaves out keeps its
default:

    seq_len = 64
    [model]
    design = "gpt"          # start from a known design; see lmxlab.experiments.designs
    d_model = 192
    [optim]
    learning_rate = 1e-3
    [budget]
    flops = 1e12
"""

import dataclasses
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmxlab.core.block import check_components
from lmxlab.core.config import ModelConfig
from lmxlab.data import DataConfig
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.finetune import LoRAConfig
from lmxlab.experiments.methods import Method, find_method, method_to_dict
from lmxlab.training.config import TrainConfig

EVAL_TOKENS = 65_536  # validation tokens that a run's score is taken on
# What suits a model of laboratory size on characters, where a design, a config file or a flag says nothing else.
LAB_OPTIM = TrainConfig(
    learning_rate=Method.learning_rate, batch_size=8, min_lr_ratio=0.1, weight_decay=0.1, max_steps=500
)


@dataclass(frozen=True)
class Budget:
    """How long to train, in one unit; nothing set means `optim.max_steps`."""

    flops: float | None = None
    """Training FLOPs: forward and backward, evaluation not counted."""
    minutes: float | None = None
    """Minutes of training, turned into steps by measuring the machine."""
    steps: int | None = None
    """Optimizer steps."""
    tokens: int | None = None
    """Training tokens."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if len(given) > 1:
            raise UserError(f"A budget has one unit, got {sorted(given)}: give one of flops, minutes, steps, tokens.")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise UserError(f"The budget must be finite and above 0, got {name} = {value}.")


def check_seed(seed: int) -> None:
    """UserError for a seed that the random generators do not take."""
    if not 0 <= seed < 2**63:
        raise UserError(f"A seed must be at least 0 and below 2^63, got {seed}.")


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Attributes:
        name: what the run is called in folders, tables and the ledger.
        model: architecture; its vocab_size is the tokenizer's.
        data: text, tokenizer and split.
        optim: the training loop's settings; `max_steps` and `seed` follow `budget` and `seed` below.
        seq_len: training context in tokens.
        budget: when to stop.
        seed: decides the initial weights and the order of the data.
        eval_tokens: validation tokens scored at the end, spread evenly over the split; 0 scores the whole split. During
            training an eighth as many are scored every `optim.eval_interval` steps.
        sample_tokens: length of the sample text written at the end.
        pretrained: the model that training starts from, glassllm or a folder in Hugging Face's layout; "" for weights
            that the seed decides.
        lora: adapters, which are then all that is trained.
        method: what is learnt from the data, and how.
    """

    name: str
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optim: TrainConfig = field(default_factory=TrainConfig)
    seq_len: int = 64
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    eval_tokens: int = EVAL_TOKENS
    sample_tokens: int = 200
    pretrained: str = ""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    method: Method = field(default_factory=Method)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for layer in range(self.model.n_layers):
            check_components(self.model.get_block_config(layer))
        if self.pretrained and self.data.tokenizer.partition(":")[0] in ("char", "bpe"):
            raise UserError(
                f"A pretrained model needs its own tokenizer, not {self.data.tokenizer!r}: leave data.tokenizer out."
            )
        for name, low in (("seq_len", 1), ("eval_tokens", 0), ("sample_tokens", 0)):
            if getattr(self, name) < low:
                raise UserError(f"{name} must be at least {low}, got {getattr(self, name)}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: `RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec`."""
        return {
            "name": self.name,
            "model": self.model.to_dict(),
            "data": dataclasses.asdict(self.data),
            "optim": self.optim.to_dict(),
            "seq_len": self.seq_len,
            "budget": {key: value for key, value in dataclasses.asdict(self.budget).items() if value is not None},
            "seed": self.seed,
            "eval_tokens": self.eval_tokens,
            "sample_tokens": self.sample_tokens,
            "pretrained": self.pretrained,
            "lora": {**dataclasses.asdict(self.lora), "targets": list(self.lora.targets)},
            "method": method_to_dict(self.method),
        }

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> "RunSpec":
        """The inverse of `to_dict`; an unknown key raises UnknownNameError, a wrong type UserError."""
        check_keys(table)
        for key in ("name", "model"):
            if key not in table:
                raise UserError(f"The settings of a run have no {key!r}: the file is damaged, or not a run's.")
        values = dict(table)
        values["model"] = ModelConfig.from_dict(table["model"])
        for section, kind in SECTIONS.items():
            values[section] = from_table(kind, table.get(section, {}), section)
        values["method"] = method_from_table(table.get("method", {}))
        return from_table(cls, values)


SECTIONS: dict[str, Any] = {"data": DataConfig, "optim": TrainConfig, "budget": Budget, "lora": LoRAConfig}


def read_config(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML or JSON config file, keys checked; also takes a run folder's config.json."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise UserError(f"There is no config file {str(path)!r}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the config file {str(path)!r}: {error}") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{str(path)!r} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{str(path)!r} must hold a table of settings, not a {type(table).__name__}.")
    table = table.get("spec", table)  # config.json of a run folder holds the spec beside the environment
    if not isinstance(table, dict):
        raise UserError(f"{str(path)!r} must hold a table of settings under 'spec', not a {type(table).__name__}.")
    check_keys(table)
    return table


def check_keys(table: dict[str, Any]) -> None:
    """Raises UnknownNameError for a key that a run does not have, and UserError for a plain value of the wrong type."""
    hints = typing.get_type_hints(RunSpec)
    for key, value in table.items():
        if key not in hints:
            raise UnknownNameError("config key", key, hints)
        if key not in ("model", "method", *SECTIONS):
            _checked(key, value, hints[key])


def method_from_table(table: Any) -> Method:
    """The method of a [method] table, which has its name beside its settings; {} for none.

    >>> method_from_table({"name": "mtp", "n_predict": 2})
    MTP(n_predict=2, weight=0.3)
    """
    if not isinstance(table, dict):
        raise UserError(f"[method] must be a table of settings with a name, got {table!r}.")
    kind = find_method(table.get("name", ""))
    method: Method = from_table(kind, {key: value for key, value in table.items() if key != "name"}, "method")
    return method


def from_table(kind: Any, table: Any, section: str = "") -> Any:
    """Builds the dataclass `kind` from a table read from a file, checking names and types.

    >>> from_table(Budget, {"steps": 3})
    Budget(flops=None, minutes=None, steps=3, tokens=None)
    """
    if not isinstance(table, dict):
        raise UserError(f"[{section}] must be a table of settings, got {table!r}.")
    prefix = f"{section}." if section else ""
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    values = {}
    for key, value in table.items():
        if key not in names:
            raise UnknownNameError("config key", prefix + key, [prefix + name for name in names])
        values[key] = _checked(prefix + key, value, hints[key])
    return kind(**values)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type that the field has; a file may give an int for a float and a list for a tuple."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    bases = tuple(typing.get_origin(kind) or kind for kind in allowed)
    if float in bases and isinstance(value, int) and not isinstance(value, bool) and int not in bases:
        return float(value)
    if int in bases and isinstance(value, float) and float not in bases and value == int(value):
        return int(value)  # 1e6 steps
    if tuple in bases and isinstance(value, list):
        return tuple(value)
    classes = tuple(base for base in bases if isinstance(base, type))
    if isinstance(value, bool) and bool not in classes or classes and not isinstance(value, classes):
        expected = " or ".join("nothing" if c is types.NoneType else c.__name__ for c in classes)
        raise UserError(f"{name} must be {expected}, got {value!r}.")
    return value
