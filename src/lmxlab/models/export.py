"""Writing a model as a Hugging Face folder, which transformers, mlx-lm and `load_from_hf` load with equal logits."""

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from lmxlab.core.array_file import write_arrays
from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError, some
from lmxlab.files import atomic_directory
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import CONVERTERS, config_from_hf, shapes_of
from lmxlab.models.hf_config import Converter
from lmxlab.models.meaning import meaning
from lmxlab.models.mlx_lm import ALWAYS_A_HEAD
from lmxlab.models.weight_files import INDEX

logger = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000  # what the hub asks for


def export_model(
    model: LanguageModel,
    folder: str | Path,
    *,
    tokens: Mapping[str, int | None] | None = None,
    files: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> str:
    """Writes config.json and model.safetensors, in shards where they are large; prediction heads are left out.

    The folder appears whole or not at all: it is written under another name, synced and renamed.

    Args:
        tokens: further entries of config.json, such as bos_token_id and eos_token_id.
        files: further files, by name: those of a tokenizer.
        shard_bytes: no file of weights is larger than this, unless one weight is.
        overwrite: replace a folder that is there.

    Returns:
        The model_type of the config.json.

    Raises:
        OSError: a full disk; nothing is left behind.
        UserError: the folder is there, the model is quantised or has adapters, or no published class computes what it
            does; the message says what differs.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise UserError(f"{folder} exists: choose another folder, or say that it may be replaced (--overwrite)")
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / "config.json").is_file())):
        raise UserError(f"{folder} is no exported model: it is not replaced")
    converter, fields = hf_config_of(model.config)
    parameters: Any = dict(tree_flatten(model.parameters()))
    foreign = [name for name in parameters if name.endswith((".scales", ".biases", ".lora_A", ".lora_B"))]
    if foreign:
        raise UserError(
            f"The model is quantised or has adapters ({some(foreign)}): dequantize it and merge the adapters first"
        )
    shapes = shapes_of(model)
    kept = {name: shape for name, shape in shapes.items() if not name.startswith("mtp_heads.")}
    if len(kept) < len(shapes):
        logger.warning(
            "the %d prediction heads are not exported: the classes of transformers have no place for them",
            model.config.mtp_n_predict,
        )
    transfers = converter.transfers(model.config, kept)
    dtypes = {str(array.dtype).removeprefix("mlx.core.") for array in parameters.values()}
    common = {"model_type": converter.model_type, "architectures": [converter.architecture]}
    dtype = {"torch_dtype": dtypes.pop()} if len(dtypes) == 1 else {}
    defaults = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with atomic_directory(folder) as work:
        text = json.dumps({**common, **fields, **dtype, **defaults, **(tokens or {})}, indent=2)
        (work / "config.json").write_text(text + "\n", encoding="utf-8")
        for name, content in (files or {}).items():
            (work / name).write_text(content, encoding="utf-8")
        arrays: Iterator[tuple[str, mx.array]] = (
            item for transfer in transfers for item in transfer.to_theirs(parameters.__getitem__).items()
        )
        if model.config.tie_embeddings and converter.model_type in ALWAYS_A_HEAD:
            arrays = chain(arrays, [("lm_head.weight", parameters["embed.weight"])])
        _write_shards(work, arrays, shard_bytes)
    return converter.model_type


def hf_config_of(config: ModelConfig) -> tuple[Converter, dict[str, Any]]:
    """The published class that computes what a model of this config does, and the fields of its config.json.

    It is chosen by proof: what a family writes must be read back as a config of the same meaning.

    Raises:
        UserError: there is none; the message names what the nearest one cannot express.
    """
    asked = meaning(config)
    nearest: tuple[str, list[str]] | None = None
    for converter in CONVERTERS.values():
        try:
            fields = converter.to_hf(config)
            found = meaning(config_from_hf({"model_type": converter.model_type, **json.loads(json.dumps(fields))}))
        except UserError:
            continue
        differ = sorted(key for key in asked.keys() | found.keys() if asked.get(key) != found.get(key))
        if not differ:
            return converter, fields
        if nearest is None or len(differ) < len(nearest[1]):
            nearest = converter.architecture, [f"{key} {asked.get(key)!r}" for key in differ]
    hint = f" The nearest is {nearest[0]}, which has no {'; no '.join(nearest[1][:4])}." if nearest else ""
    raise UserError(
        f"No published class of transformers computes what this config does, so it cannot be exported.{hint}"
    )


def _write_shards(folder: Path, arrays: Iterator[tuple[str, mx.array]], shard_bytes: int) -> None:
    shards: list[dict[str, mx.array]] = [{}]
    size = 0
    for name, array in arrays:
        if shards[-1] and size + array.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    total = sum(array.nbytes for shard in shards for array in shard.values())
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for file, shard in zip(names, shards, strict=True):
        write_arrays(folder / file, shard, {"format": "pt"})
        shard.clear()
