"""Tokenizers: exact text back, exact bytes per token, documents kept apart."""

import json
import string
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmxlab.data import (
    BPETokenizer,
    CharTokenizer,
    HFTokenizer,
    TiktokenTokenizer,
    Tokenizer,
    UnknownCharacterError,
    load_tokenizer,
)
from lmxlab.errors import UserError

TEXT = "Être, ou ne pas être: 日本語 🙂\n\tthat is <|bos|> the question"


def bytes_of(tokenizer, tokens):
    return int(tokenizer.token_bytes()[np.asarray(tokens, dtype=np.int64)].sum())


def test_char_ids_follow_the_code_points():
    tokenizer = CharTokenizer("banana é")
    assert tokenizer.characters == [" ", "a", "b", "n", "é"]
    assert tokenizer.encode("nab é") == [3, 1, 2, 0, 4]
    assert tokenizer.vocab_size == 5
    assert isinstance(tokenizer, Tokenizer)


def test_char_default_is_printable_ascii():
    tokenizer = CharTokenizer()
    assert tokenizer.vocab_size == 95
    assert tokenizer.encode(" ~") == [0, 94]


def test_char_fit_rebuilds():
    tokenizer = CharTokenizer("abc")
    tokenizer.fit("xy")
    assert tokenizer.vocab_size == 2
    assert tokenizer.decode(tokenizer.encode("yx")) == "yx"


@pytest.mark.parametrize("bad", ["é", "\U0010ffff", "A"])
def test_char_names_the_unknown_character_and_its_place(bad):
    with pytest.raises(KeyError, match="position 2") as caught:
        CharTokenizer("abc").encode("ab" + bad)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, UnknownCharacterError)
    assert repr(bad) in str(caught.value) and "bpe:1024" in str(caught.value)


@given(st.text())
def test_char_gives_any_text_back(text):
    tokenizer = CharTokenizer(text, bos=True)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert bytes_of(tokenizer, tokens) == len(text.encode())


def test_char_separator_is_no_text():
    tokenizer = CharTokenizer("ab", bos=True)
    assert tokenizer.bos_id == 2 and tokenizer.vocab_size == 3
    assert tokenizer.decode([2, 0, 2, 1]) == "ab"
    assert tokenizer.token_bytes().tolist() == [1, 1, 0]
    assert CharTokenizer("ab").bos_id is None


def test_char_refuses_a_token_outside_the_vocabulary():
    with pytest.raises(UserError, match="token 2 is outside"):
        CharTokenizer("ab").decode([0, 2])


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train([TEXT, string.printable * 3, "the question " * 20], vocab_size=300)


@given(text=st.text())
def test_bpe_gives_any_text_back(bpe, text):
    tokens = bpe.encode(text)
    assert bpe.decode(tokens) == text
    assert bytes_of(bpe, tokens) == len(text.encode())


def test_bpe_training_is_repeatable(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        BPETokenizer.train([TEXT, "the question " * 20], vocab_size=280).save(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_bpe_has_the_size_asked_for_and_begins_with_the_separator(bpe):
    assert bpe.vocab_size == 300
    assert bpe.bos_id == 0
    assert bpe.token_bytes()[0] == 0


def test_bpe_every_single_byte_has_length_one(bpe):
    # All but the printable ASCII ones decode to U+FFFD, whose own UTF-8 would be 3 bytes.
    assert sorted(bpe.token_bytes().tolist())[1:257] == [1] * 256


def test_bpe_reads_a_written_separator_as_text(bpe):
    assert 0 not in bpe.encode("a <|bos|> b")
    (tokens,) = bpe.encode_documents(["a <|bos|> b"])
    assert 0 not in tokens
    assert bytes_of(bpe, tokens) == len("a <|bos|> b")


def test_bpe_documents_equal_single_encodings(bpe):
    texts = [TEXT, "", "the question", TEXT * 3]
    assert [ids.tolist() for ids in bpe.encode_documents(texts)] == [bpe.encode(text) for text in texts]


def test_bpe_too_small():
    with pytest.raises(UserError, match="at least bpe:257"):
        BPETokenizer.train(["x"], vocab_size=256)


def test_bpe_learns_from_no_more_than_max_chars():
    with_rest = BPETokenizer.train(["abababab", "zqzqzqzq" * 9], vocab_size=260, max_chars=8)
    without = BPETokenizer.train(["abababab"], vocab_size=260)
    assert with_rest.encode("ababzqzq") == without.encode("ababzqzq")


@pytest.mark.parametrize("kind", ["char", "char with separator", "bpe"])
def test_saved_tokenizer_encodes_as_before(kind, bpe, tmp_path):
    made = {"char": CharTokenizer(TEXT), "char with separator": CharTokenizer(TEXT, bos=True), "bpe": bpe}[kind]
    made.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(loaded) is type(made)
    assert loaded.encode(TEXT) == made.encode(TEXT)
    assert loaded.bos_id == made.bos_id
    assert loaded.token_bytes().tolist() == made.token_bytes().tolist()
    assert json.loads((tmp_path / "tokenizer.json").read_text())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "char"}', '{"kind": "word"}', '{"model": 1}', "3"])
def test_a_file_that_holds_no_tokenizer(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(path)


@pytest.mark.parametrize("spec", ["chars", "nowhere.json", "hf:", "char"])
def test_an_unknown_spec_says_what_is_allowed(spec):
    with pytest.raises(UserError, match="bpe:SIZE"):
        load_tokenizer(spec)


# --- held against the libraries that others use


def test_gpt2_bytes_are_those_of_its_vocabulary(gpt2_folder: Path):
    """The oracle is GPT-2's own table, written out from its definition: the 256 byte characters in vocabulary order."""
    tokenizer = load_tokenizer(gpt2_folder)
    assert tokenizer.vocab_size == 50257
    assert tokenizer.bos_id == 50256
    lengths = tokenizer.token_bytes()
    vocabulary = json.loads((gpt2_folder / "vocab.json").read_text(encoding="utf-8"))
    # One character of an entry stands for one byte.
    assert all(lengths[i] == len(token) for token, i in vocabulary.items() if i != 50256)
    assert lengths[50256] == 0
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT
    assert bytes_of(tokenizer, tokens) == len(TEXT.encode())
    assert tokenizer.encode("Hello world") == [15496, 995]  # published


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


@pytest.mark.oracle
def test_sentencepiece_like_tokens_have_their_bytes(tmp_path):
    """Metaspace with byte fallback, as LLaMA's tokenizer."""
    tokenizers = pytest.importorskip("tokenizers", reason="a dependency")
    from tokenizers import decoders, models, normalizers

    vocabulary = {"<unk>": 0, "<s>": 1, **{f"<0x{b:02X}>": 2 + b for b in range(256)}, "▁": 258, "a": 259, "▁a": 260}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    text = "a a é"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.bos_id == 1
    assert tokenizer.token_bytes()[tokens].tolist() == [1, 2, 1, 1, 1]


def test_a_tokenizer_without_fixed_bytes_is_refused(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    backend = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not byte-level"):
        load_tokenizer(tmp_path).token_bytes()


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
