"""Byte-level byte-pair encoding: every text has tokens, and every token a known number of bytes.

Training and encoding are those of the `tokenizers` library; what is here decides the settings, and finds the raw bytes
of each token. The saved file is that library's own `tokenizer.json`, which transformers reads as well.
"""

import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmxlab.errors import UserError
from lmxlab.files import atomic_write

BOS = "<|bos|>"
# What other people's files call the token between documents, first match wins.
SEPARATORS = (BOS, "<|begin_of_text|>", "<|endoftext|>", "<s>", "[BOS]", "<bos>")
BLOCK_CHARS = 4_000_000  # texts are handed to the library in blocks of about this size: its threads share one block


class BPETokenizer:
    """A byte-level BPE in the format of the tokenizers library.

    >>> tokenizer = BPETokenizer.train(["to be or not to be"] * 3, vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("être")), tokenizer.bos_id
    ('être', 0)
    """

    def __init__(self, backend: Backend):
        self._backend = backend
        # A document that contains the text "<|bos|>" must not end there.
        self._backend.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, max_chars: int = 1_000_000_000) -> "BPETokenizer":
        """Learns merges from `texts` (at most `max_chars` of them) until there are `vocab_size` tokens.

        The first id is BOS, then the 256 bytes, then the merges. A small text may give fewer tokens than asked for.

        Raises:
            UserError: fewer than 257 tokens asked for.
        """
        if vocab_size < 257:
            raise UserError(f"bpe:{vocab_size} is too small: it takes 256 bytes and a separator, so at least bpe:257.")
        backend = Backend(models.BPE())
        _byte_level(backend)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(_at_most(texts, max_chars), trainer)
        return cls(backend)

    @classmethod
    def from_gpt2_files(cls, folder: str | Path) -> "BPETokenizer":
        """Reads `vocab.json` and `merges.txt`, the format that GPT-2 was published in."""
        folder = Path(folder)
        backend = Backend(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        _byte_level(backend)
        backend.add_special_tokens([name for name in SEPARATORS if backend.token_to_id(name) is not None])
        return cls(backend)

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """Reads a `tokenizer.json`.

        Raises:
            UserError: the file is not one.
        """
        try:
            return cls(Backend.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error

    def save(self, path: str | Path) -> None:
        atomic_write(path, self._backend.to_str())

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def bos_id(self) -> int | None:
        found = (self._backend.token_to_id(name) for name in SEPARATORS)
        return next((i for i in found if i is not None), None)

    def token_bytes(self) -> np.ndarray:
        return byte_lengths(self._backend, self.vocab_size)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_documents(self, texts: Iterable[str]) -> Iterable[np.ndarray]:
        return encode_texts(self._backend, texts)

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; special tokens have none, bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(np.asarray(tokens, dtype=np.int64).tolist(), skip_special_tokens=True)


def encode_texts(backend: Backend, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text, on all cores; special tokens written in a text are read as text."""
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        texts = iter(texts)
        while block := _block(texts):
            for encoding in backend.encode_batch_fast(block, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=np.int64)
    finally:
        backend.encode_special_tokens = before


def byte_lengths(backend: Backend, vocab_size: int) -> np.ndarray:
    """Bytes of text that each token stands for, int32 `(vocab_size,)`; 0 for special tokens.

    They are read from the vocabulary's own entries. Decoding a token and encoding the result would be wrong for every
    token that is not valid UTF-8 on its own: such a token decodes to U+FFFD, which has 3 bytes whatever it had.

    Raises:
        UserError: a tokenizer that is neither byte-level nor SentencePiece-like, so that tokens have no fixed bytes.
    """
    settings = json.loads(backend.to_str())
    added = {entry["id"]: entry for entry in settings["added_tokens"]}
    is_byte_level = '"ByteLevel"' in json.dumps([settings["pre_tokenizer"], settings["decoder"]])
    if not is_byte_level and "▁" not in json.dumps(
        [settings["normalizer"], settings["pre_tokenizer"], settings["decoder"]], ensure_ascii=False
    ):
        raise UserError("this tokenizer is not byte-level: the bytes of its tokens are not known; choose another one.")
    lengths = np.zeros(vocab_size, dtype=np.int32)
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index >= vocab_size or (index in added and added[index]["special"]):
            continue
        if index in added:
            lengths[index] = len(token.encode())
        elif is_byte_level:
            lengths[index] = len(raw_bytes(token))
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            lengths[index] = 1  # SentencePiece's byte fallback
        else:
            lengths[index] = len(token.replace("▁", " ").encode())
    return lengths


def raw_bytes(token: str) -> bytes:
    """The bytes behind a byte-level vocabulary entry.

    >>> raw_bytes("Ġthe")
    b' the'
    """
    table = _byte_of_character()
    return bytes(table[c] for c in token)


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's reversible map (`bytes_to_unicode` in its encoder.py): printable bytes stand for themselves, the others
    for the characters after 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte_level(backend: Any) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()


def _at_most(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    for text in texts:
        yield text[:max_chars]
        max_chars -= len(text)
        if max_chars <= 0:
            return


def _block(texts: Iterator[str]) -> list[str]:
    block, size = [], 0
    for text in islice(texts, 10_000):
        block.append(text)
        size += len(text)
        if size >= BLOCK_CHARS:
            break
    return block
