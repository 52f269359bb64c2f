"""Pretrained models from Hugging Face folders: config.json and safetensors, read without transformers."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.config import ModelConfig
from lmxlab.core.precision import cast
from lmxlab.errors import MissingExtraError, UserError
from lmxlab.models import gemma, gemma3, gpt, llama, mistral, olmo2, qwen, smollm3
from lmxlab.models.base import LanguageModel
from lmxlab.models.hf_config import Converter, HFConfig

WeightMapFn = Callable[[str], str | None]
"""A Hugging Face weight name -> ours, or None to skip it."""

QUANTIZED_BITS, GROUP_SIZE = (2, 3, 4, 5, 6, 8), 64  # what MLX's affine mode takes

# Buffers that old checkpoints carry and that follow from the config.
BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")


CONVERTERS = {
    "gpt2": Converter(gpt.config_from_gpt2, gpt.weights_from_gpt2),
    "llama": Converter.renaming(llama.config_from_llama, llama.LLAMA_NAMES),
    "mistral": Converter.renaming(mistral.config_from_mistral, llama.LLAMA_NAMES),
    "qwen2": Converter.renaming(qwen.config_from_qwen2, llama.LLAMA_NAMES),
    "qwen3": Converter.renaming(qwen.config_from_qwen3, qwen.QWEN3_NAMES),
    "olmo2": Converter.renaming(olmo2.config_from_olmo2, olmo2.OLMO2_NAMES),
    "smollm3": Converter.renaming(smollm3.config_from_smollm3, llama.LLAMA_NAMES),
    "gemma": Converter.renaming(gemma.config_from_gemma, llama.LLAMA_NAMES),
    "gemma2": Converter.renaming(gemma.config_from_gemma2, gemma.GEMMA2_NAMES),
    "gemma3_text": Converter.renaming(gemma3.config_from_gemma3, gemma3.GEMMA3_NAMES),
}
# The families whose weights only change their names.
WEIGHT_MAPS: dict[str, WeightMapFn] = {name: c.rename for name, c in CONVERTERS.items() if c.rename is not None}


def convert_weights(hf_weights: dict[str, mx.array], arch: str) -> dict[str, mx.array]:
    """Renames a dict of Hugging Face weights; values stay, unknown names are dropped.

    Raises:
        KeyError: `arch` is not in WEIGHT_MAPS.
    """
    if arch not in WEIGHT_MAPS:
        raise KeyError(f"No weight map for {arch!r}. Available: {sorted(WEIGHT_MAPS)}")
    names = {name: WEIGHT_MAPS[arch](name) for name in hf_weights}
    return {ours: hf_weights[name] for name, ours in names.items() if ours is not None}


def config_from_hf(hf_config: dict[str, Any]) -> ModelConfig:
    """The config that a Hugging Face config dict describes, in either of its layouts.

    Raises:
        UserError: a model type that is not built, a missing field, or one that changes the computation in a way that
            is not built; the message names it.
    """
    converter, hf = _converter(hf_config), HFConfig(hf_config)
    config = converter.config(hf)
    hf.finish()
    return config


def load_from_hf(
    repo_id: str, revision: str | None = None, dtype: mx.Dtype = mx.float16, quantize: int | None = None
) -> tuple[LanguageModel, ModelConfig]:
    """A pretrained model.

    Args:
        repo_id: a local folder as `save_pretrained` writes it, or a repo of the Hugging Face hub.
        revision: branch, tag or commit of the repo.
        dtype: what the weights are cast to.
        quantize: bits per weight of the matrices, one of 2, 3, 4, 5, 6, 8, with a scale and an offset for each 64
            weights; None leaves them whole.

    Returns:
        The model and its config.

    Raises:
        UserError: no such folder, no safetensors in it, a config that is not built, weights that are missing, unknown
            or of another shape; the message names them.
        ImportError: a hub repo without huggingface_hub installed.
    """
    if quantize not in (None, *QUANTIZED_BITS):
        raise UserError(f"quantize is {quantize!r}; it must be one of {QUANTIZED_BITS} bits, or None")
    folder = Path(repo_id)
    if not folder.is_dir():
        folder = _download(repo_id, revision)
    hf_config = _read_json(folder / "config.json")
    config = config_from_hf(hf_config)
    weights = _convert(_converter(hf_config), _read_safetensors(folder), config)
    model = LanguageModel(config)
    _check_complete(weights, dict(_leaves(model)), folder)
    model.update(tree_unflatten([(name, cast(name, array, dtype)) for name, array in weights.items()]))
    if quantize is not None:
        narrow = [name for name, array in weights.items() if array.ndim == 2 and array.shape[1] % GROUP_SIZE]
        if narrow:
            raise UserError(f"quantize: rows of {_some(narrow)} are no multiple of {GROUP_SIZE} weights")
        nn.quantize(model, group_size=GROUP_SIZE, bits=quantize)
    mx.eval(model.parameters())
    return model, config


def _converter(hf_config: dict[str, Any]) -> Converter:
    model_type = hf_config.get("model_type")
    if model_type is None:
        raise UserError(f"The config is missing required fields: ['model_type'] (one of {sorted(CONVERTERS)})")
    if model_type not in CONVERTERS:
        raise UserError(f"Unsupported model_type {model_type!r}; built are {sorted(CONVERTERS)}")
    return CONVERTERS[model_type]


def _convert(converter: Converter, hf_weights: dict[str, mx.array], config: ModelConfig) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    unknown = []
    for name, array in hf_weights.items():
        if BUFFERS.search(name):
            continue
        converted = converter.weights(name, array)
        if not converted:
            unknown.append(name)
        weights |= converted
    if unknown:
        raise UserError(f"Unsupported weights: {_some(unknown)}; the model would not be the one that was trained")
    if config.tie_embeddings:
        weights.pop("head.weight", None)  # older files hold the tied matrix twice
    return weights


def _check_complete(weights: dict[str, mx.array], expected: dict[str, mx.array], folder: Path) -> None:
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing:
        raise UserError(f"{folder.name}: missing weights {_some(missing)}")
    if unknown:
        raise UserError(f"{folder.name}: weights that its config has no place for: {_some(unknown)}")
    for name, array in weights.items():
        if array.shape != expected[name].shape:
            raise UserError(f"{folder.name}: {name} is {array.shape}, its config says {expected[name].shape}")


def _leaves(model: LanguageModel) -> list[tuple[str, mx.array]]:
    leaves: Any = tree_flatten(model.parameters())
    return leaves


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"No {path.name} in {path.parent}; give a folder that save_pretrained wrote") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def _read_safetensors(folder: Path) -> dict[str, mx.array]:
    """All weights of the folder: those of the shards that the index names, else of every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = [folder / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if not files and pickles:
        raise UserError(
            f"{folder} has its weights in {_some(pickles)}, which are pickles: reading one may run any code. Convert "
            "them to safetensors first, as transformers does with save_pretrained"
        )
    if not files:
        raise UserError(f"No .safetensors file in {folder}; save the model with safe serialization")
    weights: dict[str, mx.array] = {}
    for file in files:
        try:
            weights |= mx.load(str(file))  # type: ignore[arg-type]  # a safetensors file is a dict
        except (RuntimeError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from None
    return weights


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    except ImportError:
        raise MissingExtraError(
            f"{repo_id!r} is no local folder, and hub repos need huggingface_hub: pip install 'lmxlab[hf]'"
        ) from None
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(f"{repo_id!r} is neither a local folder nor a repo of the hub: {error}") from None
