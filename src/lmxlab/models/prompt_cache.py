"""Caches in files: a long prompt is read once, and every later conversation goes on from there."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core.array_file import write_arrays
from lmxlab.core.cache import Cache
from lmxlab.errors import UserError
from lmxlab.files import atomic_file
from lmxlab.models.base import LanguageModel

FORMAT = "lmxlab prompt cache 1"
UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}  # by bytes


def save_prompt_cache(path: str | Path, cache: Sequence[Cache | None], model: LanguageModel) -> None:
    """Writes the caches that a call of `model` returned to a safetensors file, whole or not at all."""
    arrays: dict[str, mx.array] = {}
    numbers: dict[str, int | None] = {}
    for layer, entry in enumerate(cache):
        for name, value in _leaves({} if entry is None else entry.snapshot()):
            kind: dict[str, Any] = arrays if isinstance(value, mx.array) else numbers
            kind[f"{layer}.{name}"] = value
    metadata = {"format": FORMAT, "numbers": json.dumps(numbers), "model": _fingerprint(model)}
    path = _file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        write_arrays(file, arrays, metadata)


def load_prompt_cache(path: str | Path, model: LanguageModel) -> list[Cache | None]:
    """The caches that `save_prompt_cache` wrote, for `generate(cache=...)` or a call of the model.

    Raises:
        UserError: no such file, no prompt cache, or one of another model.
    """
    path = _file(path)
    if not path.is_file():
        raise UserError(f"No prompt cache at {path}; save_prompt_cache writes one")
    arrays: dict[str, Any]
    metadata: dict[str, str]
    try:
        arrays, metadata = mx.load(str(path), return_metadata=True)  # type: ignore[assignment]  # of a safetensors file
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a prompt cache: {error}") from None
    if metadata.get("format") != FORMAT or not {"model", "numbers"} <= metadata.keys():
        raise UserError(f"{path} is no prompt cache of lmxlab ({FORMAT!r}); save_prompt_cache writes one")
    if metadata["model"] != _fingerprint(model):
        raise UserError(f"{path} is the prompt cache of another model: its config or its weights are not these")
    leaves: dict[str, Any] = arrays | json.loads(metadata["numbers"])
    bits = next((value for name, value in leaves.items() if name.endswith(".bits")), None)
    caches = model.make_cache(bits=bits)
    for layer, cache in enumerate(caches):
        if cache is not None:
            prefix = f"{layer}."
            state = [(name.removeprefix(prefix), leaf) for name, leaf in leaves.items() if name.startswith(prefix)]
            cache.restore(tree_unflatten(state))
    return caches


def _file(path: str | Path) -> Path:
    """The path with the ending .safetensors, which takes the place of no other: "chat.1" and "chat.2" are two files."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _leaves(tree: dict[str, Any]) -> list[tuple[str, Any]]:
    leaves: Any = tree_flatten(tree)
    return leaves


def _fingerprint(model: LanguageModel) -> str:
    """Of the config and, for every parameter, the sum of its numbers' bits and the first of them."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, array in sorted(_leaves(model.parameters())):
        digest.update(name.encode())
        numbers = mx.contiguous(array.reshape(-1))
        digest.update(bytes(mx.view(numbers[:16], mx.uint8)))
        digest.update(str(mx.view(numbers, UNSIGNED[array.dtype.size]).sum().item()).encode())
    return digest.hexdigest()
