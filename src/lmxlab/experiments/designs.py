"""Designs by name or by file: what `train gpt` and `compare gpt my.toml` mean.

A family's name (`gpt`) means that architecture at *laboratory size*: small enough to train in seconds on two cores, the
same depth, width and head size for every family. A preset's name (`gpt_10m`) means its published shape. Both take the
vocabulary of the data and the context of the run.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.loaded import base_config
from lmxlab.experiments.spec import read_config
from lmxlab.models.families import FAMILIES, Family

LAB_LAYERS = 4
LAB_WIDTH = 128
LAB_HEAD_DIM = 32
LAB_WINDOWS = 4  # a sliding window, or a chunk, is this part of the context


@dataclass(frozen=True)
class Design:
    """An architecture to train, before the data has said how large the vocabulary is.

    Attributes:
        name: as tables show it.
        model: `(vocab_size, seq_len) -> ModelConfig`.
        settings: the tables of the config file it came from; empty for a named design.
        resizable: whether `compare` may change its size: true for a family's name, false for a preset or a file.
    """

    name: str
    model: Callable[[int, int], ModelConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    resizable: bool = False


def find_design(source: str) -> Design:
    """The design that `source` names: a family, a preset or a config file (.toml, .json)."""
    if source.endswith((".toml", ".json")):
        settings = read_config(source)
        name = str(settings.get("name", Path(source).stem))
        if pretrained := settings.get("pretrained"):
            return Design(name, lambda vocab, seq_len: _pretrained(pretrained, settings), settings)
        return Design(
            name, lambda vocab, seq_len: model_from_table(settings.get("model", {}), vocab, seq_len), settings
        )
    model = _named(source)
    return Design(source, model, resizable=source in FAMILIES)


def model_from_table(table: Any, vocab_size: int, seq_len: int) -> ModelConfig:
    """The model that a config file's [model] table describes.

    `design` in it names where to start (laboratory size or a preset); further keys are fields of ModelConfig or, for
    every block, of BlockConfig. A table with a `block` table is a whole ModelConfig, as config.json holds it.
    """
    if not isinstance(table, dict):
        raise UserError(f"[model] must be a table of settings, got {table!r}.")
    table = dict(table)
    start = table.pop("design", None)
    if start is None and ("block" in table or "block_configs" in table):
        return ModelConfig.from_dict({"vocab_size": vocab_size, **table})
    if start is None:
        raise UserError(
            f"[model] needs design = NAME (one of {design_names()}) to start from, or a [model.block] table."
        )
    return adapt(_named(start)(vocab_size, seq_len), table)


def adapt(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """`model` with fields replaced: those of ModelConfig once, those of BlockConfig in every block.

    `mup_base_width` makes it a muP model as the families' own factories do, attention scale and embeddings included.

    Raises:
        UnknownNameError: for a name that is in neither.
    """
    own = {f.name for f in dataclasses.fields(ModelConfig)} - {"block", "block_configs"}
    inner = {f.name for f in dataclasses.fields(BlockConfig) if f.init}
    for key in changes:
        if key not in own | inner:
            raise UnknownNameError("config key", f"model.{key}", [f"model.{name}" for name in own | inner])
    outer = {key: value for key, value in changes.items() if key in own}
    inner_changes = {key: value for key, value in changes.items() if key in inner}
    width = int(changes.get("d_model", model.block.d_model))
    if base := changes.get("mup_base_width"):
        inner_changes.setdefault("mup", True)
        width = int(base)
    was, becomes = model.block.position == "sinusoidal", changes.get("position", model.block.position) == "sinusoidal"
    if was != becomes:  # only fixed sinusoids, of amplitude 1, ask for embeddings as large as them
        outer.setdefault("embed_scale", math.sqrt(width) if becomes else 1.0)
    elif changes.keys() & {"d_model", "mup_base_width"} and math.isclose(
        model.embed_scale, math.sqrt(model.block.d_model)
    ):
        outer.setdefault("embed_scale", math.sqrt(width))  # it follows the width, as in gpt_config
    return _replace(model, outer, inner_changes)


def _pretrained(source: str, settings: dict[str, Any]) -> ModelConfig:
    if "model" in settings and "block" not in settings["model"]:  # a stored run's holds the whole config
        raise UserError(f"[model] would be ignored: pretrained {source!r} says what the model is; leave one out.")
    return base_config(source)


def design_names() -> list[str]:
    """Every name that `find_design` knows: families, then presets."""
    return [*FAMILIES, *(preset for family in FAMILIES.values() for preset in family.presets)]


def _named(name: str) -> Callable[[int, int], ModelConfig]:
    if name in FAMILIES:
        return lambda vocab_size, seq_len: _lab_size(FAMILIES[name], vocab_size, seq_len)
    for family in FAMILIES.values():
        if name in family.presets:
            preset = family.presets[name]
            return lambda vocab_size, seq_len: _replace(preset(), {"vocab_size": vocab_size}, {"max_seq_len": seq_len})
    raise UnknownNameError("design", name, design_names())


def _lab_size(family: Family, vocab_size: int, seq_len: int) -> ModelConfig:
    """A family's architecture at laboratory size.

    Embeddings are tied in every family here: with a vocabulary of thousands, an untied head would otherwise be most of
    a small model, and the comparison would be about that.
    """
    n_heads = LAB_WIDTH // LAB_HEAD_DIM
    gated = "gated" in family.config().block.ffn  # three matrices instead of two: the same size at 2/3 of the width
    shape = {
        "vocab_size": vocab_size,
        "d_model": LAB_WIDTH,
        "n_heads": n_heads,
        "head_dim": LAB_HEAD_DIM,
        "n_kv_heads": n_heads // 2,
        "n_layers": LAB_LAYERS,
        "d_ff": 8 * round(LAB_WIDTH / 3) if gated else 4 * LAB_WIDTH,
        "max_seq_len": seq_len,
        "tie_embeddings": True,
        # Published windows are longer than the context here: they would change nothing.
        "window_size": max(2, seq_len // LAB_WINDOWS),
        "attention_chunk_size": max(2, seq_len // LAB_WINDOWS),
        "global_every": LAB_LAYERS,
        **family.lab,
    }
    takes = inspect.signature(family.config).parameters
    return family.config(**{name: value for name, value in shape.items() if name in takes})


def _replace(model: ModelConfig, own: dict[str, Any], inner: dict[str, Any]) -> ModelConfig:
    """Replaces fields of the model, and fields of its block template and of every per-layer block."""
    blocks = model.block_configs
    return dataclasses.replace(
        model,
        block=dataclasses.replace(model.block, **inner),
        block_configs=None if blocks is None else tuple(dataclasses.replace(block, **inner) for block in blocks),
        **own,
    )
