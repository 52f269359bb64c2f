"""Stop strings end a text where they begin, however the tokens cut them, and nothing of them gets out before."""

import random

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.llama import llama_tiny
from lmxlab.models.stop import TextWatch, check_stop_strings
from lmxlab.models.text import stream_text

from .architectures import build


class Pieces:
    """Token i is the i-th piece."""

    def __init__(self, *pieces: str | bytes):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.vocab_size = len(pieces)

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", errors="replace")


def run(watch: TextWatch, tokens: list[int]) -> tuple[list[int], str]:
    kept, text = [], ""
    for token in tokens:
        released = watch.push(token)
        kept += released.tokens
        text += released.text
    released = watch.finish()
    return kept + released.tokens, text + released.text


def test_a_stop_string_across_tokens_is_found() -> None:
    tokenizer = Pieces("Hello", " wor", "ld. S", "TO", "P and", " more")
    watch = TextWatch(tokenizer, [], ["STOP"])
    texts = [watch.push(token).text for token in range(6)]
    assert "".join(texts) == "Hello world. " and watch.ended
    assert texts[2] == "ld. "  # the S is held back at once
    kept, _ = run(TextWatch(tokenizer, [], ["STOP"]), list(range(6)))
    assert kept == [0, 1]  # the third token has a part of it


def test_what_only_began_like_a_stop_string_gets_out() -> None:
    tokenizer = Pieces("S", "T", "O", "x")
    watch = TextWatch(tokenizer, [], ["STOP"])
    assert [watch.push(token).text for token in (0, 1, 2, 3)] == ["", "", "", "STOx"]
    assert run(TextWatch(tokenizer, [], ["STOP"]), [0, 0, 1]) == ([0, 0, 1], "SST")  # at the end, too


@pytest.mark.parametrize("stops", [["ab"], ["aab", "bb"], ["aba", "ab"], ["bbbb"], ["a"]])
def test_any_cut_into_tokens_gives_the_text_before_the_first_stop_string(stops: list[str]) -> None:
    tokenizer = Pieces("a", "b", "aa", "ab", "bab", "")
    draw = np.random.default_rng(0)
    for _ in range(200):
        tokens = draw.integers(0, 6, 8).tolist()
        whole = tokenizer.decode(tokens)
        kept, text = run(TextWatch(tokenizer, [], stops), tokens)
        if len(stops) == 1:
            assert text == whole.split(stops[0])[0]
        assert whole.startswith(text) and not any(stop in text for stop in stops)
        assert (text == whole) == (not any(stop in whole for stop in stops))
        assert kept == tokens[: len(kept)] and text.startswith(tokenizer.decode(kept))
        if text == whole:
            assert kept == tokens
        else:  # the next token would reach into the stop string
            assert len(tokenizer.decode(tokens[: len(kept) + 1])) > len(text)


def test_characters_of_several_tokens_come_whole() -> None:
    euro = "€".encode()
    tokenizer = Pieces(euro[:1], euro[1:2], euro[2:], "x", b"\xff")
    watch = TextWatch(tokenizer, [0, 1], ["€€"])  # the prompt may end within a character
    assert [watch.push(token).text for token in (3, 0, 1, 2, 3)] == ["x", "", "", "", "€x"]
    watch = TextWatch(tokenizer, [], [])
    assert "".join(watch.push(4).text for _ in range(8)) == 8 * "\ufffd"  # bytes of no character do get out


def test_the_prompt_is_not_searched() -> None:
    tokenizer = Pieces("ST", "OP", "x")
    assert run(TextWatch(tokenizer, [0], ["STOP"]), [1, 2]) == ([1, 2], "OPx")


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    assert run(TextWatch(Pieces("a", "b"), [7], ["c"]), [0, 9, 1]) == ([0, 9, 1], "ab")


def test_every_row_ends_at_its_own_stop_string_and_streaming_agrees() -> None:
    model = build(llama_tiny())
    tokenizer = Pieces(*(chr(97 + i % 26) for i in range(256)))
    prompt = mx.array([[1, 2, 3], [9, 8, 7]])
    plain = generate(model, prompt, 40, temperature=0.0)[:, 3:].tolist()
    stop = tokenizer.decode(plain[0][9:12])
    ends = [tokenizer.decode(row).find(stop) for row in plain]  # one character per token
    assert 0 < ends[0] < 12
    settings = {"temperature": 0.0, "stop_strings": [stop], "tokenizer": tokenizer}
    out = generate(model, prompt, 40, **settings)[:, 3:].tolist()
    for row, (before, after) in enumerate(zip(plain, out, strict=True)):
        end = ends[row] if ends[row] >= 0 else 40
        assert after[:end] == before[:end]
        assert set(after[end:]) <= {before[end]} if end < 40 else True
        assert list(stream_generate(model, prompt[row : row + 1], 40, **settings)) == before[:end]
        pieces = stream_text(model, tokenizer, prompt[row].tolist(), 40, stop_strings=[stop], seed=1)
        assert stop not in "".join(pieces)


def test_stop_tokens_release_what_was_held_back() -> None:
    model = build(llama_tiny())
    tokenizer = Pieces(*("ab"[i % 2] for i in range(256)))
    prompt = mx.array([[1, 2, 3]])
    plain = generate(model, prompt, 20, temperature=0.0)[0, 3:].tolist()
    end = plain.index(plain[5])
    never = "".join("ab"[token % 2] for token in plain[:end]) + "c"  # begins like the text and is never complete
    settings = {"temperature": 0.0, "stop_tokens": [plain[5]], "stop_strings": [never], "tokenizer": tokenizer}
    assert generate(model, prompt, 20, **settings)[0, 3:].tolist() == plain[:end]
    assert list(stream_generate(model, prompt, 20, **settings)) == plain[:end]


@pytest.mark.parametrize(
    ("stop", "tokenizer", "message"),
    [("text", Pieces("a"), "a list of strings"), (["a", ""], Pieces("a"), "is empty"), (["a"], None, "tokenizer=")],
)
def test_stop_strings_that_cannot_be_meant_are_refused(stop, tokenizer, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stop_strings(stop, tokenizer)


class AnyBytes:
    """Tokens of any bytes, which may end one character and begin another."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces

    def decode(self, tokens: list[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")


def test_characters_that_lie_across_many_tokens_come_out_whole() -> None:
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choice("ab\u00e9\u65e5\U0001f600") for _ in range(draw.randint(1, 30)))
        pieces, rest = [], text.encode()
        while rest:
            size = draw.choice([1, 1, 2, 3, 5])
            pieces, rest = [*pieces, rest[:size]], rest[size:]
        watch = TextWatch(AnyBytes(pieces), [], ["b\u65e5"])
        found = "".join(watch.push(token).text for token in range(len(pieces))) + watch.finish().text
        assert found == text.partition("b\u65e5")[0]
