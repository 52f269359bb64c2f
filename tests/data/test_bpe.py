"""Byte-level BPE: any text back, exact bytes per token, the separator apart from the text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmxlab.data import BPETokenizer, load_tokenizer
from lmxlab.errors import UserError

from .conftest import TEXT, bytes_of


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
