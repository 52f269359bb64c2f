"""Preparing data: the same config gives the same data, from the cache too, and mistakes are told in one line."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmxlab.data import BPETokenizer, CharTokenizer, DataConfig, TokenBatches, describe, list_datasets, prepare
from lmxlab.errors import UserError

PREPARE = sys.modules["lmxlab.data.prepare"]  # the package gives the function of the same name


def documents(data, split):
    """The texts of a split, cut at the separators."""
    tokens = np.asarray(getattr(data, split))
    starts = np.flatnonzero(tokens == data.tokenizer.bos_id)
    assert starts[0] == 0
    return [data.tokenizer.decode(part[1:]) for part in np.split(tokens, starts[1:])]


@pytest.mark.parametrize("tokenizer", ["char", "bpe:400"])
def test_documents_are_separated_whole_and_in_one_split_only(pydocs, tokenizer):
    from pydoc_data.topics import topics

    data = prepare(pydocs(tokenizer=tokenizer))
    train, val = documents(data, "train"), documents(data, "val")
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted({text for text in topics.values() if text.strip()})
    part = sum(map(len, val)) / sum(map(len, train + val))
    assert 0.05 < part < 0.15


def test_every_tokenizer_sees_the_same_split_and_the_same_bytes(pydocs):
    data = [prepare(pydocs(tokenizer=tokenizer)) for tokenizer in ("char", "bpe:300", "bpe:1000")]
    for split in ("train", "val"):
        sums = {int(d.token_bytes[getattr(d, split)].sum()) for d in data}
        assert sums == {data[0].info["bytes"][split]}
    assert len({d.hash for d in data}) == 3


def test_the_same_config_gives_the_same_data_anywhere(pydocs, tmp_path):
    one = prepare(pydocs())
    cached = prepare(pydocs())
    elsewhere = prepare(pydocs(cache_dir=str(tmp_path / "other")))
    assert one.hash == cached.hash == elsewhere.hash
    assert (one.train == elsewhere.train).all() and (one.val == elsewhere.val).all()
    assert one.info == cached.info


@pytest.mark.parametrize("other", [{"seed": 1}, {"val_fraction": 0.3}, {"max_documents": 20}, {"tokenizer": "bpe:300"}])
def test_another_config_gives_other_data(pydocs, other):
    assert prepare(pydocs()).hash != prepare(pydocs(**other)).hash


def test_the_cache_is_used(pydocs, monkeypatch):
    first = prepare(pydocs())

    def refuse(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(PREPARE, "write_shards", refuse)
    again = prepare(pydocs())
    assert isinstance(again.train, np.memmap)
    assert again.tokenizer.encode("def f") == first.tokenizer.encode("def f")


def test_a_changed_source_is_prepared_anew(tmp_path):
    path = tmp_path / "text.txt"
    config = DataConfig(str(path), cache_dir=str(tmp_path / "cache"))
    path.write_text("abc" * 50)
    before = prepare(config)
    path.write_text("abd" * 50)
    after = prepare(config)
    assert after.hash != before.hash
    assert after.tokenizer.decode(after.val) == ("abd" * 50)[-15:]


def test_nanogpt_setting(tinyshakespeare: Path, tmp_path):
    data = prepare(DataConfig(str(tinyshakespeare), cache_dir=str(tmp_path)))
    text = tinyshakespeare.read_text()
    assert data.vocab_size == 65
    assert data.tokenizer.bos_id is None
    assert data.tokenizer.decode(data.train) == text[: int(len(text) * 0.9)]
    assert data.tokenizer.decode(data.val) == text[int(len(text) * 0.9) :]
    assert (len(data.train), len(data.val)) == (1_003_854, 111_540)


def test_a_character_that_only_validation_shows_is_counted_not_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a" * 95 + "é" * 5, encoding="utf-8")
    data = prepare(DataConfig(str(tmp_path / "text.txt"), cache_dir=str(tmp_path / "cache")))
    assert data.tokenizer.decode(data.val) == "aaaaaééééé"
    assert int(data.token_bytes[data.val].sum()) == 15


def test_bpe_learns_from_the_training_part_alone(tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 450 + "xy" * 50)
    data = prepare(DataConfig(str(tmp_path / "text.txt"), "bpe:260", cache_dir=str(tmp_path / "cache")))
    tokenizer = data.tokenizer
    assert len(tokenizer.encode("abab")) < 4
    assert len(tokenizer.encode("xyxy")) == 4


def test_a_saved_tokenizer_can_be_used(pydocs, tmp_path):
    first = prepare(pydocs(tokenizer="bpe:300"))
    first.tokenizer.save(tmp_path / "mine.json")
    second = prepare(pydocs(tokenizer=str(tmp_path / "mine.json")))
    assert second.hash == first.hash
    # Another file under the same name is another tokenizer.
    BPETokenizer.train(["other text"], 260).save(tmp_path / "mine.json")
    assert prepare(pydocs(tokenizer=str(tmp_path / "mine.json"))).hash != first.hash


def test_gpt2_folder_as_tokenizer(pydocs, gpt2_folder: Path):
    data = prepare(pydocs(tokenizer=str(gpt2_folder)))
    assert data.vocab_size == 50257 and data.train[0] == 50256
    assert int(data.token_bytes[data.val].sum()) == data.info["bytes"]["val"]


def test_describe_before_and_after(pydocs):
    before = describe(pydocs())
    assert before["prepared"] is False and before["network"] is False and "Python" in before["source"]
    data = prepare(pydocs())
    after = describe(pydocs())
    assert after["prepared"] is True and after["hash"] == data.hash
    assert describe(data)["documents"] == data.info["documents"]
    json.dumps([before, after, list_datasets()])


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [("bpe:", "no size"), ("bpe:many", "no size"), ("bpe:10", "at least bpe:257"), ("word", "give char, bpe:SIZE")],
)
def test_unknown_tokenizer(pydocs, tokenizer, message):
    with pytest.raises(UserError, match=message):
        prepare(pydocs(tokenizer=tokenizer))


def test_a_text_shorter_than_one_window(tmp_path):
    (tmp_path / "text.txt").write_text("short text")
    data = prepare(DataConfig(str(tmp_path / "text.txt"), cache_dir=str(tmp_path / "cache")))
    with pytest.raises(UserError, match="Not enough data: 9 tokens, but one window takes 65"):
        TokenBatches(data.train, 4, 64)


def test_a_character_that_a_saved_tokenizer_never_saw(tmp_path):
    (tmp_path / "text.txt").write_text("hello world")
    CharTokenizer("helo wrd").save(tmp_path / "known.json")
    CharTokenizer("abc").save(tmp_path / "unknown.json")
    cache = str(tmp_path / "cache")
    assert (
        prepare(DataConfig(str(tmp_path / "text.txt"), str(tmp_path / "known.json"), cache_dir=cache)).vocab_size == 8
    )
    with pytest.raises(UserError, match="character 'h'"):
        prepare(DataConfig(str(tmp_path / "text.txt"), str(tmp_path / "unknown.json"), cache_dir=cache))
    left = [path.name for path in (tmp_path / "cache" / "tokens").iterdir() if not path.name.endswith(".lock")]
    assert len(left) == 1


def test_a_tokenizer_without_separator_cannot_take_documents(pydocs, tmp_path):
    CharTokenizer().save(tmp_path / "plain.json")
    with pytest.raises(UserError, match="no token to put between documents"):
        prepare(pydocs(tokenizer=str(tmp_path / "plain.json")))


def prepared_folder(config: DataConfig) -> Path:
    return Path(prepare(config).info["cached_at"])


def test_what_a_killed_process_left_is_cleared_away(pydocs):
    config = pydocs(max_documents=12)
    folder = prepared_folder(config)
    expected = prepare(config).hash
    folder.rename(folder.with_name(f".tmp-{folder.name}-abcd"))
    assert prepare(config).hash == expected
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name, folder.name + ".lock"]


def test_a_cache_that_cannot_be_written(pydocs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written .*cache_dir or XDG_CACHE_HOME"):
        prepare(pydocs(cache_dir=str(tmp_path / "file")))


def test_a_read_only_cache_can_be_read(pydocs, monkeypatch):
    first = prepare(pydocs())

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(PREPARE, "FileLock", refuse)
    assert prepare(pydocs()).hash == first.hash


def test_processes_that_prepare_the_same_data_at_once(pydocs):
    config = pydocs(max_documents=30)
    code = (
        "import sys; from lmxlab.data import DataConfig, prepare; "
        f"data = prepare(DataConfig('pydocs', max_documents=30, cache_dir={config.cache_dir!r})); "
        "print(data.hash, int(data.train.sum()))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = {process.communicate(timeout=120)[0] for process in running}
    data = prepare(config)
    assert outputs == {f"{data.hash} {int(data.train.sum())}\n"}
    assert all(process.returncode == 0 for process in running)
