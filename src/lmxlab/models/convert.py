"""Pretrained models from Hugging Face folders: config.json and safetensors, read without transformers."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.config import ModelConfig
from lmxlab.core.precision import cast
from lmxlab.core.quantize import check_quantization, module_at, quantize_model
from lmxlab.errors import MissingExtraError, UserError, some
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.models.hf_config import Converter, HFConfig
from lmxlab.models.weight_files import WeightFiles, read_json
from lmxlab.models.weight_map import Transfer

WeightMapFn = Callable[[str], str | None]
"""A Hugging Face weight name -> ours, or None to skip it."""

GROUP_SIZE = 64  # weights that share a scale

# Buffers that old checkpoints carry and that follow from the config.
BUFFERS = r".*(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)"

CONVERTERS: dict[str, Converter] = {
    family.hf.model_type: family.hf for family in FAMILIES.values() if family.hf is not None
}
# The families whose weights only change their names.
WEIGHT_MAPS: dict[str, WeightMapFn] = {
    name: rename for name, converter in CONVERTERS.items() if (rename := converter.rename) is not None
}


def convert_weights(hf_weights: dict[str, mx.array], arch: str, pattern: str | None = None) -> dict[str, mx.array]:
    """Renames a dict of Hugging Face weights; values stay, unknown names are dropped.

    Args:
        arch: a key of WEIGHT_MAPS, or a family whose names depend on `pattern`.
        pattern: the kinds of the layers, as the config of such a family ("nemotron_h") has them.

    Raises:
        KeyError: `arch` is neither.
        ValueError: a family whose names depend on the pattern, and none is given.
    """
    by_pattern = CONVERTERS[arch].rename_by_pattern if arch in CONVERTERS else None
    if by_pattern is not None:
        if pattern is None:
            raise UserError(f"The weight names of {arch!r} depend on the kinds of its layers: give pattern")
        rename = by_pattern(pattern)
    elif arch in WEIGHT_MAPS:
        rename = WEIGHT_MAPS[arch]
    else:
        raise KeyError(f"No weight map for {arch!r}. Available: {sorted(WEIGHT_MAPS)}")
    names = {name: rename(name) for name in hf_weights}
    return {ours: hf_weights[name] for name, ours in names.items() if ours is not None}


def config_from_hf(hf_config: dict[str, Any]) -> ModelConfig:
    """The config that a Hugging Face config dict describes, in either of its layouts.

    Raises:
        UserError: a model type that is not built, a missing field, or one that changes the computation in a way that
            is not built; the message names it.
    """
    converter, hf = find_converter(hf_config), HFConfig(hf_config)
    try:
        config = converter.config(hf)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"A field of the {hf.model_type} config has a value that no model can have: {type(error).__name__}: {error}"
        ) from error
    hf.finish()
    return config


def load_from_hf(
    repo_id: str, revision: str | None = None, dtype: mx.Dtype = mx.float16, quantize: int | None = None
) -> tuple[LanguageModel, ModelConfig]:
    """A pretrained model. Its weights are read, cast and quantised a few at a time, and nothing else is held.

    Args:
        repo_id: a local folder as `save_pretrained` writes it, or a repo of the Hugging Face hub.
        revision: branch, tag or commit of the repo.
        dtype: what the weights are cast to.
        quantize: bits per weight of the matrices, one of 1, 2, 3, 4, 5, 6, 8, with a scale and an offset for each 64
            weights; None leaves them whole.

    Returns:
        The model and its config.

    Raises:
        UserError: no such folder, no safetensors in it, a config that is not built, weights that are missing, unknown,
            torn or of another shape; the message names them.
        ImportError: a hub repo without huggingface_hub installed.
    """
    if quantize is not None:
        check_quantization(quantize, GROUP_SIZE, "affine")
    folder = Path(repo_id)
    if not folder.is_dir():
        folder = _download(repo_id, revision)
    hf_config = read_json(folder / "config.json")
    config = config_from_hf(hf_config)
    model = LanguageModel(config)  # its random weights are promises, which nothing ever computes
    files = WeightFiles(folder)
    plan = _plan(find_converter(hf_config), config, model, files, folder)
    if quantize is not None:
        quantize_model(model, quantize, GROUP_SIZE)  # of weights that are still promises
    loaded = [leaf for transfer in plan for leaf in _load(transfer, files, model, dtype)]
    model.update(tree_unflatten(loaded))
    return model, config


def find_converter(hf_config: dict[str, Any]) -> Converter:
    """The converter for a config.json; UserError for a kind of model that is not built."""
    model_type = hf_config.get("model_type")
    if model_type is None:
        raise UserError(f"The config is missing required fields: ['model_type'] (one of {sorted(CONVERTERS)})")
    if not isinstance(model_type, str) or model_type not in CONVERTERS:
        raise UserError(f"Unsupported model_type {model_type!r}; built are {sorted(CONVERTERS)}")
    return CONVERTERS[model_type]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by its dotted path."""
    leaves: Any = tree_flatten(model.parameters())
    return {name: array.shape for name, array in leaves}


def _plan(
    converter: Converter, config: ModelConfig, model: LanguageModel, files: WeightFiles, folder: Path
) -> list[Transfer]:
    """How every weight comes about; names and shapes are checked before the first byte is read."""
    files.remove_prefix(converter.prefix)
    plan = converter.transfers(config, shapes_of(model))
    needed = {name for transfer in plan for name in transfer.their_names}
    if missing := needed - files.names:
        raise UserError(f"{folder.name}: missing weights {some(missing)}")
    ignored = re.compile("|".join(filter(None, (BUFFERS, converter.ignored))))
    # Older files hold a tied matrix twice.
    tied = "lm_head.weight" if config.tie_embeddings else None
    unknown = {name for name in files.names - needed if name != tied and not ignored.fullmatch(name)}
    if unknown:
        raise UserError(
            f"{folder.name}: unsupported weights, which its config has no place for: {some(unknown)}; the model would "
            "not be the one that was trained"
        )
    for transfer in plan:
        transfer.to_ours(files.read)  # lazy: this looks at shapes alone
    if packed := {name for name in needed if not mx.issubdtype(files.read(name).dtype, mx.floating)}:
        raise UserError(
            f"{folder.name}: {some(packed)} are no floating-point numbers: weights that another tool has quantised are "
            "not read; take the model's whole weights"
        )
    if tied in files.names - needed:
        (embedding,) = next(transfer.their_names for transfer in plan if transfer.ours == ("embed.weight",))
        if not mx.array_equal(files.read(tied), files.read(embedding)):
            raise UserError(
                f"{folder.name}: {tied} differs from {embedding}, though its config ties them: set "
                "tie_word_embeddings to false in config.json, or leave one of them out"
            )
        files.drop(tied)
    return plan


def _load(
    transfer: Transfer, files: WeightFiles, model: LanguageModel, dtype: mx.Dtype
) -> Iterator[tuple[str, mx.array]]:
    """The weights of one transfer, computed, and the files' arrays forgotten."""
    for path, weight in transfer.to_ours(files.read).items():
        leaves = [(path, cast(path, weight, dtype))]
        parent = path.rpartition(".")[0]
        module = module_at(model, parent)
        if path.endswith(".weight") and "scales" in module:
            kind = {name: getattr(module, name) for name in ("group_size", "bits", "mode") if hasattr(module, name)}
            parts = mx.quantize(leaves[0][1], **kind)
            leaves = [
                (f"{parent}.{name}", part) for name, part in zip(("weight", "scales", "biases"), parts, strict=False)
            ]
        mx.eval(leaves)
        yield from leaves
    for name in transfer.their_names:
        files.drop(name)
    mx.clear_cache()


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise MissingExtraError(
            f"{repo_id!r} is no local folder, and hub repos need huggingface_hub: pip install 'lmxlab[hf]'"
        ) from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(f"{repo_id!r} is neither a local folder nor a repo of the hub: {error}") from None
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{repo_id!r} is no local folder, and the hub cannot be reached to ask for a repo of that name: check the "
            "path, or the network"
        ) from error
