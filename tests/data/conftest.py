"""Shared by the data tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmxlab.data import DataConfig

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


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
