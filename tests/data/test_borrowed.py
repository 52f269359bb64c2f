"""Tokenizers of other libraries, held against each other and against ours; and what is said without them."""

import json
import sys
from pathlib import Path

import pytest

from lmxlab.data import HFTokenizer, TiktokenTokenizer, load_tokenizer
from lmxlab.errors import UserError

from .conftest import TEXT


@pytest.mark.oracle
def test_gpt2_agrees_with_transformers_and_tiktoken(gpt2_folder: Path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = json.loads((gpt2_folder / "vocab.json").read_text(encoding="utf-8"))
    # In GPT-2 a token's id is also its rank among the merges.
    ranks = {bytes(byte_of[c] for c in token): i for token, i in vocabulary.items() if i != 50256}
    encoding = tiktoken.Encoding(
        name="gpt2",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    ours, other = load_tokenizer(gpt2_folder), TiktokenTokenizer("gpt2")
    third = transformers.GPT2Tokenizer(str(gpt2_folder / "vocab.json"), str(gpt2_folder / "merges.txt"))
    for text in (TEXT, "  spaces   and\n\nlines", "don't 123456 <|endoftext|>"):
        assert ours.encode(text) == other.encode(text)
        (documents,) = other.encode_documents([text])
        assert documents.tolist() == ours.encode(text)
        if "<|" not in text:
            assert ours.encode(text) == third.encode(text, add_special_tokens=False)
    assert other.bos_id == ours.bos_id == 50256
    assert other.vocab_size == 50257
    assert other.decode(other.encode(TEXT)) == TEXT
    raw = [len(encoding.decode_single_token_bytes(i)) for i in range(50256)] + [0]
    assert ours.token_bytes().tolist() == raw
    assert other.token_bytes().tolist() == raw


@pytest.mark.oracle
def test_hf_tokenizer_from_a_local_folder(bpe, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    bpe.save(tmp_path / "tokenizer.json")
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<|bos|>"
    ).save_pretrained(tmp_path / "repo")
    tokenizer = load_tokenizer(f"hf:{tmp_path / 'repo'}")
    assert isinstance(tokenizer, HFTokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.bos_id) == (300, 0, None, 0)
    plain = TEXT.replace("<|bos|>", "")
    assert tokenizer.encode(plain) == bpe.encode(plain)
    assert tokenizer.decode(tokenizer.encode(plain)) == plain
    assert tokenizer.token_bytes().tolist() == bpe.token_bytes().tolist()
    (ids,) = tokenizer.encode_documents([TEXT])
    assert ids.tolist() == bpe.encode(TEXT)  # the written separator is text
    tokenizer.save(tmp_path / "saved.json")
    assert load_tokenizer(tmp_path / "saved.json").encode(plain) == bpe.encode(plain)


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [("tiktoken", TiktokenTokenizer, "tiktoken"), ("transformers", lambda: HFTokenizer("gpt2"), "hf")],
)
def test_a_missing_package_says_what_to_install(module, make, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install 'lmxlab\\[{extra}\\]'"):
        make()


def test_tiktoken_without_a_network(monkeypatch):
    tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is an extra")

    def refuse(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(UserError, match="needs the network once"):
        TiktokenTokenizer("gpt2")


def test_tiktoken_unknown_encoding():
    pytest.importorskip("tiktoken", reason="tiktoken is an extra")
    with pytest.raises(UserError, match="Unknown tiktoken encoding 'gpt9'.*cl100k_base"):
        TiktokenTokenizer("gpt9")


def test_hf_folder_without_a_tokenizer(tmp_path):
    pytest.importorskip("transformers", reason="transformers is an extra")
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        HFTokenizer(str(tmp_path))
