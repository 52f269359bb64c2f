"""The embedded model's tokenizer against its own."""

import mlx.core as mx
import pytest

from lmxlab.data.embedded import plays_folder
from lmxlab.data.glassllm import glassllm_tokenizer, load_glassllm
from lmxlab.eval.metrics import bits_per_byte
from lmxlab.models.generate import generate

glassllm = pytest.importorskip("glassllm", reason="pip install --no-deps glassllm==0.1.0")
TEXT = (
    "CHAPTER I.\n\n  Alice was beginning   to get “very” tired—of sitting by\nher sister <bos> on the bank, 1 2 33 \n"
)


@pytest.mark.parametrize("language", ["en", "pt"])
def test_ids_equal_its_own(language: str) -> None:
    tokenizer, theirs = glassllm_tokenizer(language), glassllm.load_pretrained(language)[1]
    folder = plays_folder()
    play = next(folder.glob("*/*.md")).read_text(encoding="utf-8")[:20000] if folder else ""
    for text in (TEXT, play, "", " ", "\n", "não é; œuvre"):
        assert tokenizer.encode(text) == theirs.encode(text)
    assert tokenizer.vocab_size == theirs.vocab_size == 1024
    assert [tokenizer.decode([i]) for i in range(4, 1024)] == [theirs.decode([i]) for i in range(4, 1024)]


def test_bytes_of_tokens_are_those_of_their_text() -> None:
    tokenizer = glassllm_tokenizer()
    lengths = tokenizer.token_bytes()
    assert lengths[:4].tolist() == [0, 0, 0, 0] and tokenizer.bos_id == 2
    assert all(lengths[i] == len(tokenizer.decode([i]).encode()) for i in range(4, 1024))


def test_it_knows_english_better_than_noise() -> None:
    model, tokenizer = load_glassllm()
    words = tokenizer.encode("Alice was not a bit hurt, and she jumped up on to her feet in a moment.")
    english, noise = (
        bits_per_byte(model, mx.array([ids]), token_bytes=tokenizer.token_bytes()) for ids in (words, words[::-1])
    )
    assert english < 3 < noise
    assert generate(model, mx.array(words), max_tokens=4, temperature=0.0).shape == (len(words) + 4,)
