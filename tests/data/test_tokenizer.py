"""Tokenizers: exact text back, exact bytes per token, saved and loaded as they were."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmxlab.data import CharTokenizer, Tokenizer, UnknownCharacterError, load_tokenizer
from lmxlab.errors import UserError

from .conftest import TEXT, bytes_of


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
