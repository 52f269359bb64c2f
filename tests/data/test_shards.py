"""Shards of tokens: as wide as the vocabulary asks, made again when damaged, never left half written."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lmxlab.data import DataConfig, prepare, shards
from lmxlab.errors import UserError


def test_token_type_follows_the_vocabulary(pydocs):
    assert prepare(pydocs()).train.dtype == np.uint16
    assert shards.token_dtype(65536) == np.uint16
    assert shards.token_dtype(65537) == np.uint32


def test_more_than_65536_characters(tmp_path):
    text = "".join(chr(0x10000 + i) for i in range(70_000))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    data = prepare(DataConfig(str(tmp_path / "text.txt"), cache_dir=str(tmp_path / "cache")))
    assert data.train.dtype == np.uint32
    assert data.tokenizer.decode([*data.train, *data.val]) == text


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "meta.json", "tokenizer.json"])
def test_damaged_shards_are_made_again(pydocs, caplog, name, damage):
    config = pydocs(max_documents=12)
    whole = prepare(config)
    expected = np.array(whole.train)
    damage(Path(whole.info["cached_at"]) / name)
    again = prepare(config)
    assert again.hash == whole.hash
    assert (again.train == expected).all()
    assert "preparing it again" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing_half_written(pydocs, tmp_path, monkeypatch, code):
    def full(path, *args):
        path.write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_split", full)
        with pytest.raises(UserError, match="no space left in .*cache_dir"):
            prepare(pydocs())
    left = [path.name for path in (tmp_path / "cache" / "tokens").iterdir() if not path.name.endswith(".lock")]
    assert left == []
    assert prepare(pydocs()).info["tokens"]["train"] > 0
