"""Adapters in the layout of peft: adapter_config.json and adapter_model.safetensors, read without peft."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmxlab.core.adapters import AdapterError, fill_adapters
from lmxlab.core.lora import NoAdapterError
from lmxlab.core.quantize import float_weight, module_at
from lmxlab.errors import UserError, some, unknown_name
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import CONVERTERS, shapes_of
from lmxlab.models.weight_files import check_whole, read_json
from lmxlab.models.weight_map import Split, Transfer, Transpose

CONFIG, ARRAYS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Their arrays of a layer, and ours.
KINDS = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_magnitude_vector": "lora_magnitude",
    "lora_magnitude_vector.weight": "lora_magnitude",  # of peft before 0.14
    "base_layer.weight": "weight",  # of an output head, which peft saves beside its adapter
}
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "alpha_pattern", "init_lora_weights"}
# Which layers there are, and their ranks, the arrays say themselves; the rest changes nothing that is computed.
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "fan_in_fan_out"),
    *("megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying", "eva_config"),
}
OFF: tuple[Any, ...] = (None, False, "none", {}, [])
# The other ways to start an adapter (pissa, olora, corda, loftq, ...) change the base model's weights, too.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def load_peft_adapters(path: str | Path, model: LanguageModel, model_type: str | None = None) -> dict[str, Any]:
    """Gives a model the adapter that peft saved for it: LoRA, rsLoRA or DoRA, with ranks and alphas per layer.

    Args:
        path: the folder that peft's `save_pretrained` wrote.
        model: the base model, as `load_from_hf` gives it, quantised or not.
        model_type: the family whose names the layers have, as in the base model's config.json. It is found by the names
            and need only be said where several families would read them differently.

    Returns:
        peft's config.

    Raises:
        FileNotFoundError: no adapter in the folder.
        UserError: a field that changes the computation and is not built, layers or shapes that the model does not
            have, a torn file; the message names it.
    """
    folder = Path(path)
    for name in (CONFIG, ARRAYS):
        if not (folder / name).is_file():
            raise NoAdapterError(f"There is no peft adapter in {str(folder)!r}: it has no {name}")
    config = read_json(folder / CONFIG)
    _check_fields(config)
    check_whole(folder / ARRAYS)
    layers = _by_layer(dict(mx.load(str(folder / ARRAYS))), str(folder))  # type: ignore[arg-type]  # a dict
    places = _find_places(model, list(layers), model_type, str(folder))
    arrays: dict[str, mx.array] = {}
    settings: dict[str, dict[str, Any]] = {}
    for module, parts in layers.items():
        transfer = places[module]
        names = [name.removesuffix(".weight") for name in transfer.ours]
        if (copy := parts.pop("weight", None)) is not None:
            _check_base(model, names[0], copy, str(folder))
        for kind, array in parts.items():
            arrays |= {f"{name}.{kind}": part for name, part in zip(names, _parts(kind, array, transfer), strict=True)}
        rank = parts["lora_A"].shape[0] if "lora_A" in parts else config["r"]
        alpha = _alpha(config, module)
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        own = {"alpha": alpha, "scaling": scaling, "dropout": config.get("lora_dropout", 0.0)}
        settings |= dict.fromkeys(names, own)
    fill_adapters(model, arrays, settings, str(folder))
    return config


def _check_fields(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UserError(f"Unsupported peft adapter: peft_type = {config.get('peft_type')!r}; only 'LORA' is built")
    for name in ("r", "lora_alpha"):
        if name not in config:
            raise UserError(f"The peft config is missing required fields: [{name!r}]")
    if config.get("init_lora_weights", True) not in STARTS:
        raise UserError(
            f"Unsupported peft adapter: init_lora_weights = {config['init_lora_weights']!r} changes the base model's "
            "weights; save it as plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    unread = [f"{k} = {v!r}" for k, v in config.items() if k not in READ | HARMLESS and v not in OFF]
    if unread:
        raise UserError(f"Unsupported field in a peft config: {some(unread)}")


def _by_layer(arrays: dict[str, mx.array], source: str) -> dict[str, dict[str, mx.array]]:
    """{their module name: {our name of an array: array}}."""
    layers: dict[str, dict[str, mx.array]] = {}
    unknown = []
    for name, array in arrays.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.+?)\.({'|'.join(map(re.escape, KINDS))})", name)
        if found is None:
            unknown.append(name)
        else:
            layers.setdefault(found[1], {})[KINDS[found[2]]] = array
    if unknown or not layers:
        raise AdapterError(f"{source}: unsupported arrays in {ARRAYS}: {some(unknown) or 'none at all'}")
    return layers


def _check_base(model: LanguageModel, name: str, weight: mx.array, source: str) -> None:
    """The frozen weight that came with an adapter must be the one that is there, but for rounding."""
    layer = module_at(model, name)
    ours = float_weight(layer, mx.float32)
    close = 0.2 if "scales" in layer else 0.01
    if weight.shape != ours.shape or mx.abs(weight - ours).max() > close * mx.abs(ours).max():
        raise AdapterError(f"{source} is an adapter for another model: it comes with other weights of {name}")


def _find_places(model: LanguageModel, modules: list[str], model_type: str | None, source: str) -> dict[str, Transfer]:
    """Where each of their layers is in the model, by the weight names of the family."""
    if model_type is not None and model_type not in CONVERTERS:
        raise UserError(unknown_name("model_type", model_type, CONVERTERS))
    shapes = shapes_of(LanguageModel(model.config))  # of its plain form; nothing is computed
    found: dict[str, dict[str, Transfer]] = {}
    missing = set(modules)
    for family in [model_type] if model_type is not None else CONVERTERS:
        converter = CONVERTERS[family]
        try:
            transfers = converter.transfers(model.config, shapes)
        except UserError:
            continue  # a family with other parts than this model's
        weights = {name: transfer for transfer in transfers for name in transfer.their_names}
        places = {module: weights.get(f"{module.removeprefix(converter.prefix)}.weight") for module in modules}
        here = {module: transfer for module, transfer in places.items() if transfer is not None}
        missing = min(missing, set(modules) - here.keys(), key=len)
        if len(here) == len(modules):
            found[family] = here
    if not found:
        raise AdapterError(f"{source} is an adapter for another model: this one has no {some(missing)}")
    meanings = {tuple(transfer.ours for transfer in places.values()) for places in found.values()}
    if len(meanings) > 1:
        raise UserError(f"{source}: its layers are other ones in each of {sorted(found)}; give model_type")
    return next(iter(found.values()))


def _parts(kind: str, array: mx.array, transfer: Transfer) -> list[mx.array]:
    """Our arrays of one of theirs, of which there are several where one of their matrices is several of ours.

    Theirs are lora_A (rank, in) and lora_B (out, rank), also where the matrix itself is kept as (in, out).
    """
    steps = [step for step in transfer.rule.steps if not isinstance(step, Transpose)]
    several = len(transfer.ours) > 1
    if len(transfer.their_names) > 1 or any(not isinstance(step, Split) or step.axis != 0 for step in steps):
        raise UserError(f"Unsupported peft adapter: {transfer.their_names[0]} has no adapter of its own here")
    if kind == "lora_A":
        return [array.T] * len(transfer.ours)
    outs = [shape[0] for shape in transfer.shapes]
    if several and sum(outs) != len(array):
        raise AdapterError(f"{transfer.their_names[0]}: its {kind} is {array.shape}, the model has {sum(outs)} outputs")
    ends = [sum(outs[: i + 1]) for i in range(len(outs) - 1)]
    pieces = mx.split(array, ends, axis=0) if several else [array]
    return [piece.T for piece in pieces]


def _alpha(config: Mapping[str, Any], module: str) -> float:
    """The layer's own alpha, where a pattern names it, by the rule of peft's `get_pattern_key`."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config["lora_alpha"])
