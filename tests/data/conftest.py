"""Shared by the data tests."""

import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lmxlab.data import BPETokenizer, CorpusTokenizer, DataConfig

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXT = "Être, ou ne pas être: 日本語 🙂\n\tthat is <|bos|> the question"


def bytes_of(tokenizer: CorpusTokenizer, tokens: Sequence[int]) -> int:
    return int(tokenizer.token_bytes()[np.asarray(tokens, dtype=np.int64)].sum())


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([TEXT, string.printable * 3, "the question " * 20], vocab_size=300)


@pytest.fixture
def pydocs(tmp_path: Path) -> Callable[..., DataConfig]:
    """`pydocs(**fields)`: a config on Python's documentation with a cache of its own."""
    return lambda **fields: DataConfig(**{"dataset": "pydocs", "cache_dir": str(tmp_path / "cache"), **fields})


@pytest.fixture
def gpt2_folder() -> Path:
    folder = SHARED / "gpt2"
    if not folder.is_dir():
        pytest.skip("GPT-2's vocab.json and merges.txt are not in ../shared/data")
    return folder


@pytest.fixture
def tinyshakespeare() -> Path:
    file = SHARED / "tinyshakespeare" / "input.txt"
    if not file.is_file():
        pytest.skip("tinyshakespeare is not in ../shared/data")
    return file
