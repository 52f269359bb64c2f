"""From a DataConfig to token arrays: once, then from the cache."""

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from lmxlab.data.bpe import BPETokenizer
from lmxlab.data.config import DataConfig
from lmxlab.data.corpus import Corpus
from lmxlab.data.shards import FORMAT, SPLITS, CorruptShards, map_tokens, read_shards, write_shards
from lmxlab.data.sources import DATASETS, resolve
from lmxlab.data.split import Split
from lmxlab.data.tokenizer import CharTokenizer, CorpusTokenizer, load_tokenizer
from lmxlab.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedData:
    """Tokens ready to train on.

    Attributes:
        train, val: `(N,)` token ids, uint16 or uint32, mapped from disk; documents begin with `tokenizer.bos_id`.
        tokenizer: what made them.
        token_bytes: `(vocab_size,)` int32, bytes of text per token; 0 for special tokens.
        hash: SHA-256 of the content: tokens and tokenizer.
        info: dataset, source, tokenizer, vocab_size, cached_at, and per split documents, characters, bytes, tokens.
    """

    train: np.ndarray
    val: np.ndarray
    tokenizer: CorpusTokenizer
    token_bytes: np.ndarray
    hash: str
    info: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size


def prepare(config: DataConfig) -> PreparedData:
    """Finds, splits and tokenizes the dataset of `config`, or maps what was prepared before.

    The cache is keyed by the content of the source, the tokenizer and the split. Two processes may prepare the same
    data at once: one works, the other waits. A folder that was torn or changed is made anew, with a warning in the log.

    The vocabulary of "char" is that of all characters of the dataset, those of the validation part included, as nanoGPT
    has it: a character that training never shows is then a costly surprise in the score, not an error.

    Raises:
        UserError: unknown or unusable dataset or tokenizer, too little text, a full disk or an unwritable cache.
    """
    corpus = resolve(config)
    folder = _cache_folder(config, corpus)
    meta = _cached(folder)
    if meta is None:
        meta = _build(config, corpus, folder)
    return _open(config, corpus, folder, meta)


def describe(data: DataConfig | PreparedData) -> dict[str, Any]:
    """What there is to know, as plain values: of prepared data its `info` and hash; of a config what it names and
    whether it has been prepared.

    Raises:
        UserError: unknown or unusable dataset or tokenizer.
    """
    if isinstance(data, PreparedData):
        return {**data.info, "hash": data.hash}
    corpus = resolve(data)
    folder = _cache_folder(data, corpus)
    meta = _cached(folder)
    if meta is not None:
        return describe(_open(data, corpus, folder, meta)) | {"prepared": True}
    about = DATASETS.get(data.dataset)
    return {
        "dataset": data.dataset,
        "source": corpus.source,
        "tokenizer": data.tokenizer,
        "prepared": False,
        "network": bool(about and about.network),
        **({"description": about.description, "size": about.size} if about else {}),
    }


def make_tokenizer(spec: str, train: Iterable[str], val: Iterable[str], running_text: bool) -> CorpusTokenizer:
    """The tokenizer that `spec` names, built on the texts where it needs any.

    Args:
        spec: as `DataConfig.tokenizer`.
        train, val: documents; BPE learns from `train` alone, characters are collected from both.
        running_text: one text without separators.

    Raises:
        UserError: unknown spec, or a tokenizer that cannot separate documents when there are several.
    """
    if spec == "char":
        characters: set[str] = set().union(*chain(train, val))
        return CharTokenizer("".join(characters), bos=not running_text)
    kind, _, size = spec.partition(":")
    if kind == "bpe":
        if not size.isascii() or not size.isdigit():
            raise UserError(f"tokenizer {spec!r} has no size: write bpe:1024 for 1024 tokens.")
        return BPETokenizer.train(train, int(size))
    tokenizer = load_tokenizer(spec)
    if tokenizer.bos_id is None and not running_text:
        raise UserError(
            f"tokenizer {spec!r} has no token to put between documents: build it with CharTokenizer(text, bos=True), "
            "or use char."
        )
    return tokenizer


def _build(config: DataConfig, corpus: Corpus, folder: Path) -> dict[str, Any]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            log.info("waiting for the process that prepares %s", folder.name)
            lock.acquire()
        try:
            meta = _cached(folder)  # another process may have made it meanwhile
            if meta is None:
                for torn in folder.parent.glob(f".tmp-*{folder.name}-*"):  # of a process that was killed
                    shutil.rmtree(torn, ignore_errors=True)
                split = Split(corpus.read(), config.val_fraction, config.seed, config.max_documents)
                tokenizer = make_tokenizer(config.tokenizer, split.train, split.val, split.running_text)
                meta = write_shards(folder, {"train": split.train, "val": split.val}, tokenizer)
            return meta
        finally:
            lock.release()
    except OSError as error:
        where = config.cache_path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left in {where}: free some, or choose another folder with cache_dir.") from error
        raise UserError(
            f"the cache folder {where} cannot be written ({error.strerror or error}): choose another one with "
            "cache_dir or XDG_CACHE_HOME."
        ) from error


def _open(config: DataConfig, corpus: Corpus, folder: Path, meta: dict[str, Any]) -> PreparedData:
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    splits = meta["splits"]
    counts = {
        key: {name: splits[name][key] for name in SPLITS} for key in ("documents", "characters", "bytes", "tokens")
    }
    return PreparedData(
        train=map_tokens(folder, "train", meta),
        val=map_tokens(folder, "val", meta),
        tokenizer=tokenizer,
        token_bytes=tokenizer.token_bytes(),
        hash=meta["hash"],
        info={
            "dataset": config.dataset,
            "source": corpus.source,
            "tokenizer": config.tokenizer,
            "vocab_size": meta["vocab_size"],
            **counts,
            "cached_at": str(folder),
        },
    )


def _cached(folder: Path) -> dict[str, Any] | None:
    try:
        return read_shards(folder)
    except CorruptShards as error:
        log.warning("%s: preparing it again", error)
        return None


def _cache_folder(config: DataConfig, corpus: Corpus) -> Path:
    parts = [
        FORMAT,
        corpus.fingerprint,
        _tokenizer_identity(config.tokenizer),
        config.val_fraction,
        config.seed,
        config.max_documents,
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", f"{corpus.name}-{Path(config.tokenizer).name}")[:60]
    return config.cache_path / "tokens" / f"{name}-{key}"


def _tokenizer_identity(spec: str) -> str:
    """The spec, and the content of the files where it is a path."""
    path = Path(spec).expanduser()
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    files = [path] if path.is_file() else [path / name for name in names if (path / name).is_file()]
    return " ".join([spec if not files else "file", *(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)])
