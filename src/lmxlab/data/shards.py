"""Token shards: the tokens of a split as one flat file that is mapped into memory, and a JSON page that vouches for it.

A folder holds `train.bin`, `val.bin` (little-endian uint16, or uint32 for more than 65,536 tokens), `tokenizer.json`
and `meta.json` with the length and SHA-256 of each. It appears whole, by a rename, or not at all.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmxlab.data.tokenizer import CorpusTokenizer
from lmxlab.files import atomic_directory

FORMAT = 1
SPLITS = ("train", "val")
# Files beyond this size are only measured, not read, when they are opened: a torn one is too short.
CHECKED_BYTES = 256_000_000


class CorruptShards(Exception):
    """A folder of shards that does not hold what its meta.json says."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def write_shards(folder: Path, splits: dict[str, Iterable[str]], tokenizer: CorpusTokenizer) -> dict[str, Any]:
    """Tokenizes the documents of each split into `folder`, each after the tokenizer's `bos_id` if it has one.

    Returns:
        the content of meta.json.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
        UserError: no text for a split, or a character that the tokenizer does not know.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    bos_id = tokenizer.bos_id
    separator = b"" if bos_id is None else np.array([bos_id], dtype).tobytes()
    with atomic_directory(folder) as work:
        tokenizer.save(work / "tokenizer.json")
        meta: dict[str, Any] = {
            "format": FORMAT,
            "dtype": dtype.str,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_sha256": _sha256(work / "tokenizer.json"),
            "splits": {
                name: _write_split(work / f"{name}.bin", texts, tokenizer, separator, dtype)
                for name, texts in splits.items()
            },
        }
        meta["hash"] = content_hash(meta)
        (work / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return meta


def _write_split(
    path: Path, texts: Iterable[str], tokenizer: CorpusTokenizer, separator: bytes, dtype: np.dtype
) -> dict[str, Any]:
    counts = {"documents": 0, "characters": 0, "bytes": 0}

    def counted() -> Iterable[str]:
        for text in texts:
            counts["documents"] += 1
            counts["characters"] += len(text)
            counts["bytes"] += len(text.encode("utf-8", "surrogatepass"))
            yield text

    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for ids in tokenizer.encode_documents(counted()):
            block = separator + ids.astype(dtype).tobytes()
            file.write(block)
            digest.update(block)
            size += len(block)
    return {"tokens": size // dtype.itemsize, **counts, "sha256": digest.hexdigest()}


def read_shards(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json when the folder is whole; None when there is none.

    Raises:
        CorruptShards: what the folder holds is not what was written.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if folder.exists():
            raise CorruptShards(f"{folder} has no meta.json") from None
        return None
    except (OSError, ValueError) as error:
        raise CorruptShards(f"{folder}/meta.json: {error}") from error
    try:
        if meta["format"] != FORMAT or meta["hash"] != content_hash(meta):
            raise CorruptShards(f"{folder}/meta.json is of another format or was changed")
        if _sha256(folder / "tokenizer.json") != meta["tokenizer_sha256"]:
            raise CorruptShards(f"{folder}/tokenizer.json was changed")
        for name in SPLITS:
            path, split = folder / f"{name}.bin", meta["splits"][name]
            size = path.stat().st_size
            if size != split["tokens"] * np.dtype(meta["dtype"]).itemsize:
                raise CorruptShards(f"{path} has {size} bytes, not those of {split['tokens']} tokens")
            if size <= CHECKED_BYTES and _sha256(path) != split["sha256"]:
                raise CorruptShards(f"{path} was changed")
    except (OSError, KeyError, TypeError) as error:
        raise CorruptShards(f"{folder}: {error!r}") from error
    return meta


def map_tokens(folder: Path, split: str, meta: dict[str, Any]) -> np.ndarray:
    """The tokens of a split, `(N,)`, mapped read-only: nothing is read before it is used."""
    return np.memmap(folder / f"{split}.bin", dtype=np.dtype(meta["dtype"]), mode="r")


def content_hash(meta: dict[str, Any]) -> str:
    """SHA-256 over the tokens of both splits and the tokenizer: equal for equal data, wherever it was prepared."""
    parts = [meta["dtype"], meta["tokenizer_sha256"], *(meta["splits"][name]["sha256"] for name in SPLITS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
