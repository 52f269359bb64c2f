"""Datasets as windows and as streams."""

import sys
from types import SimpleNamespace

import mlx.core as mx
import pytest

from lmxlab.data import CharTokenizer, HFDataset, TextDataset, TokenDataset
from lmxlab.errors import UserError


def test_text_windows_overlap_and_are_one_later():
    tokenizer = CharTokenizer("abcdef")
    dataset = TextDataset("abcdefab", tokenizer, seq_len=3)
    assert len(dataset) == 5
    assert dataset.tokenizer is tokenizer and dataset.seq_len == 3
    assert [(tokenizer.decode(x.tolist()), tokenizer.decode(y.tolist())) for x, y in dataset] == [
        ("abc", "bcd"),
        ("bcd", "cde"),
        ("cde", "def"),
        ("def", "efa"),
        ("efa", "fab"),
    ]


def test_token_dataset_reaches_the_last_token():
    dataset = TokenDataset(mx.arange(10), seq_len=4)
    assert dataset[-1][1].tolist() == dataset[len(dataset) - 1][1].tolist() == [6, 7, 8, 9]


def test_window_outside_the_data():
    dataset = TokenDataset(mx.arange(10), seq_len=4)
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"window {index} of 6"):
            dataset[index]


def test_a_text_shorter_than_a_window_has_none():
    assert len(TextDataset("ab", CharTokenizer("ab"), seq_len=5)) == 0


def test_a_window_holds_something():
    with pytest.raises(UserError, match="seq_len is 0"):
        TokenDataset(mx.arange(10), seq_len=0)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets` that remembers how it was called."""
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return [{"text": "abc"}, {"text": "  \n"}, {"text": ""}, {"text": None}, {"text": "de"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return calls


def test_hf_rows_become_one_stream_without_blank_rows(hub):
    tokenizer = CharTokenizer("abcde")
    dataset = HFDataset("owner/name", tokenizer, config_name="small", split="test", streaming=True)
    assert hub == [(("owner/name", "small"), {"split": "test", "streaming": True})]
    assert tokenizer.decode(list(dataset.token_iterator())) == "abcde"


def test_hf_documents_begin_with_the_separator(hub):
    assert list(HFDataset("x", CharTokenizer("abcde", bos=True)).token_iterator()) == [5, 0, 1, 2, 5, 3, 4]


def test_hf_batches_use_every_target_once(hub):
    dataset = HFDataset("x", CharTokenizer("abcde"), seq_len=2)
    assert [(x.tolist(), y.tolist()) for x, y in dataset.batch_iterator(batch_size=1)] == [
        ([[0, 1]], [[1, 2]]),
        ([[2, 3]], [[3, 4]]),
    ]
    assert [x.tolist() for x, _ in dataset.batch_iterator(batch_size=2)] == [[[0, 1], [2, 3]]]
    assert len(list(dataset.batch_iterator(batch_size=1, max_batches=1))) == 1
    assert list(dataset.batch_iterator(batch_size=9)) == []


def test_hf_missing_field(hub):
    with pytest.raises(UserError, match=r"no field 'body'; it has \['text'\]"):
        next(HFDataset("x", CharTokenizer(), text_field="body").token_iterator())


def test_hf_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lmxlab\[hf\]'"):
        HFDataset("x", CharTokenizer())


@pytest.mark.oracle
def test_hf_reads_a_real_local_dataset(tmp_path):
    pytest.importorskip("datasets", reason="datasets is an extra")
    (tmp_path / "train.jsonl").write_text('{"text": "ab"}\n{"text": "c"}\n')
    tokenizer = CharTokenizer("abc")
    stream = HFDataset(str(tmp_path), tokenizer).token_iterator()
    assert tokenizer.decode(list(stream)) == "abc"
