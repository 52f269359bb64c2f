"""LoRA (2106.09685) for a whole model: adapters put on, folded in, saved and loaded."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.adapters import AdapterError, adapt, adapters_of, choose, fill_adapters
from lmxlab.core.array_file import write_arrays
from lmxlab.core.config import ModelConfig
from lmxlab.core.fields import flat
from lmxlab.core.lora_experts import LoRAExpertLinear
from lmxlab.core.low_rank import ADAPTER_NAMES, LoRALinear, LowRank, Options
from lmxlab.core.quantize import replace
from lmxlab.errors import UserError, some
from lmxlab.files import atomic_file, atomic_write, to_json

ARRAYS, CONFIG = "adapter.safetensors", "adapter_config.json"
OF_TRAINING = ("dropout", "max_seq_len", "gradient_checkpointing")  # in which an adapter's two models may differ

logger = logging.getLogger(__name__)


class NoAdapterError(AdapterError, FileNotFoundError):
    """There is no adapter in a folder."""

    __str__ = ValueError.__str__


def apply_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 1.0,
    targets: list[str] | None = None,
    **options: Unpack[Options],
) -> None:
    """Gives linear layers an adapter that changes nothing yet, and freezes everything else, in place.

    Stacked experts get one for each expert; routers stay as they are.

    Args:
        rank, alpha: the update is alpha / rank times a product of two matrices with `rank` columns and rows.
        targets: parts of module names: "attention" (the default), "ffn", "q_proj", "blocks.3", "head", a whole name; or
            "all-linear" for every linear layer but the output head (which is one unless it is the embedding).
        options: dropout, dora, rslora; see `low_rank.LowRank`.

    Raises:
        UserError: a target that no linear layer's name contains, or only layers that cannot have an adapter.
    """
    chosen = choose(model, targets)
    quantised = [path for path, layer in chosen.items() if "scales" in layer]
    if quantised:
        raise UserError(f"apply_lora: {some(quantised)} are quantised; use apply_qlora")
    adapt(model, chosen, rank, alpha, **options)


def merge_lora(model: nn.Module) -> None:
    """Folds the adapters of float layers into their weights, in place; the layers are plain linear ones again.

    Nothing is unfrozen. Quantised layers keep their adapters, for the sum would have to be rounded again:
    `dequantize_model` first gives them float weights.
    """
    quantised = []
    for path, layer in model.named_modules():
        if isinstance(layer, LoRALinear | LoRAExpertLinear) and "scales" not in layer:
            merged = layer.to_linear()
            merged.freeze()
            replace(model, path, merged)
        elif isinstance(layer, LowRank):
            quantised.append(path)
    if quantised:
        logger.warning("merge_lora: %s are quantised and keep their adapters; dequantize_model first", some(quantised))


def lora_parameters(model: nn.Module) -> dict[str, Any]:
    """The trainable parameters as a tree: those of the adapters after `apply_lora`."""
    parameters: dict[str, Any] = model.trainable_parameters()
    return parameters


def save_lora_adapters(
    path: str | Path,
    model: nn.Module,
    rank: int | None = None,
    alpha: float | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Writes the folder `path`: adapter.safetensors (only the adapters' arrays) and adapter_config.json.

    The JSON names the model that the adapter belongs to, every layer's rank and scaling, and holds a checksum: a reader
    never takes files that do not belong together.

    Args:
        rank, alpha: what the JSON says under these names; by default those of the first layer.
        metadata: further entries of the JSON, beside them.
    """
    layers = adapters_of(model)
    if not layers:
        raise UserError("save_lora_adapters: the model has no adapter; apply_lora gives it one")
    first = next(iter(layers.values()))
    arrays = {f"{name}.{key}": layer[key] for name, layer in layers.items() for key in ADAPTER_NAMES if key in layer}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / ARRAYS) as file:
        write_arrays(file, arrays)
    record = {
        "rank": first.rank if rank is None else rank,
        "alpha": first.alpha if alpha is None else alpha,
        "layers": {
            name: {"rank": layer.rank, "alpha": layer.alpha, "scaling": layer.scaling, "dropout": layer.dropout}
            for name, layer in layers.items()
        },
        "base_model": _plain_config(model),
        "sha256": _sha256(folder / ARRAYS),
        **(metadata or {}),
    }
    atomic_write(folder / CONFIG, to_json(record))


def load_lora_adapters(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Fills the adapters of `model`, which it gets where it has none yet, from a folder; returns the folder's JSON.

    Raises:
        FileNotFoundError: no such folder, or no adapter in it.
        UserError: the files are damaged, or belong to a model of another architecture or size; says what differs.
    """
    folder = Path(path)
    record, arrays = _read(folder)
    theirs, ours = record.get("base_model"), _plain_config(model)
    if theirs and ours:
        _check_same_model(folder, theirs, ours)
    alike = {key: record[key] for key in ("rank", "alpha") if key in record}
    names = {name.rpartition(".")[0] for name in arrays}
    fill_adapters(model, arrays, record.get("layers") or dict.fromkeys(names, alike), str(folder))
    return record


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, mx.array]]:
    for name in (CONFIG, ARRAYS):
        if not (folder / name).is_file():
            raise NoAdapterError(f"There is no adapter in {str(folder)!r}: it has no {name}")
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG} is not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise AdapterError(f"{folder / CONFIG} must hold a table, not a {type(record).__name__}")
    if record.get("sha256", "") not in ("", _sha256(folder / ARRAYS)):
        raise AdapterError(f"{folder / ARRAYS} is torn: it is not the file that {CONFIG} was written for")
    return record, read_arrays(folder / ARRAYS)


def read_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file; AdapterError when it is none or is cut short."""
    try:
        return dict(mx.load(str(file)))  # type: ignore[arg-type]  # a safetensors file is a dict
    except (RuntimeError, OSError, ValueError) as error:
        raise AdapterError(f"{file} is torn, or no safetensors file: {error}") from None


def _check_same_model(folder: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Two models may have layers of the same names and shapes and still compute different things with them."""
    was, now = (flat(ModelConfig.from_dict(config).to_dict()) for config in (theirs, ours))
    differ = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    differ = [key for key in differ if key.rpartition(".")[2] not in OF_TRAINING]
    if differ:
        told = ", ".join(f"{key} is {was.get(key)!r} there, {now.get(key)!r} here" for key in differ[:4])
        raise AdapterError(f"{folder} is an adapter for another model: {told}")


def _plain_config(model: nn.Module) -> dict[str, Any] | None:
    config = getattr(model, "config", None)
    return config.to_dict() if isinstance(config, ModelConfig) else None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
