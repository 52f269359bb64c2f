"""What data a run is made of, as plain values that a config file can hold."""

import os
from dataclasses import dataclass
from pathlib import Path

from lmxlab.errors import UserError


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/lmxlab`, or `~/.cache/lmxlab`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmxlab"


@dataclass(frozen=True)
class DataConfig:
    """A dataset, how it becomes tokens, and how it is split.

    Args:
        dataset: a name of `lmxlab.data.DATASETS`, or the path of a text, JSONL or parquet file or of a folder of them.
        tokenizer: "char", "bpe:SIZE" (trained on the training documents), "tiktoken:NAME", "hf:REPO",
            "glassllm" (or "glassllm:pt"), or the path of a tokenizer's JSON file.
        val_fraction: share of the text that is held out, between 0 and 1. Datasets with a pinned validation file
            (climbmix) ignore it.
        seed: decides which documents are held out. A single text is split in order: its end is held out.
        max_documents: read no more documents than this.
        cache_dir: where downloads and prepared tokens are kept; `default_cache_dir()` when None.
        text_field: the field or column of JSONL and parquet files that holds the text.
        shards: number of training files to read of a dataset that comes in many (climbmix).

    Raises:
        UserError: naming the field, what it was and what would do.
    """

    dataset: str = "shakespeare"
    tokenizer: str = "char"
    val_fraction: float = 0.1
    seed: int = 0
    max_documents: int | None = None
    cache_dir: str | None = None
    text_field: str = "text"
    shards: int = 1

    def __post_init__(self) -> None:
        if not self.dataset:
            raise UserError("dataset is empty: give a name (see `lmxlab data info`) or the path of a text file.")
        if not self.tokenizer:
            raise UserError("tokenizer is empty: give char, bpe:SIZE, tiktoken:NAME, hf:REPO, glassllm or a JSON file.")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction is {self.val_fraction}: it must lie between 0 and 1, as 0.1 does.")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: it must be 0 or more.")
        if self.max_documents is not None and self.max_documents < 1:
            raise UserError(f"max_documents is {self.max_documents}: it must be at least 1, or left out for all.")
        if self.shards < 1:
            raise UserError(f"shards is {self.shards}: it must be at least 1.")

    @property
    def cache_path(self) -> Path:
        """The cache folder in use."""
        return Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
