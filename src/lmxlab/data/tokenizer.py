"""Tokenizers: text to token ids and back, each knowing how many bytes of text every token stands for.

Every tokenizer that prepares data has a `bos_id`: the special token that begins each document and thereby also ends
the one before it (None: a tokenizer of one running text, without separators). Specials stand for no text: 0 bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lmxlab.data.borrowed import HFTokenizer, TiktokenTokenizer
from lmxlab.data.bpe import BPETokenizer
from lmxlab.errors import UserError
from lmxlab.files import atomic_write

__all__ = [
    "BPETokenizer",
    "CharTokenizer",
    "CorpusTokenizer",
    "HFTokenizer",
    "TiktokenTokenizer",
    "Tokenizer",
    "UnknownCharacterError",
    "check_vocabulary",
    "load_tokenizer",
]


@runtime_checkable
class Tokenizer(Protocol):
    """What a model's user needs: text in, ids out, and back."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


@runtime_checkable
class CorpusTokenizer(Tokenizer, Protocol):
    """What preparing and scoring data needs besides."""

    @property
    def bos_id(self) -> int | None:
        """Begins every document; None where documents are not separated."""

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes of text per token id, int32 `(vocab_size,)`; 0 for special tokens."""

    def encode_documents(self, texts: Iterable[str]) -> Iterable[np.ndarray]:
        """Token ids of each text, without separators; special tokens written in a text are read as plain text."""

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer as JSON, for `load_tokenizer`."""


class UnknownCharacterError(UserError, KeyError):
    """A character that a CharTokenizer was not built with."""

    __str__ = ValueError.__str__  # KeyError would print the message in quotes

    def __init__(self, character: str, position: int, n_known: int):
        super().__init__(
            f"character {character!r} (U+{ord(character):04X}) at position {position} is not among the {n_known} "
            "characters of this tokenizer: remove it, build the tokenizer on text that has it, or use one that knows "
            "every text, such as tokenizer 'bpe:1024'."
        )


class CharTokenizer:
    """One token per character: ids follow the code points of the characters known.

    Args:
        text: the text whose characters are the vocabulary; ASCII 32 to 126 when None.
        bos: adds a token that begins a document, with the last id.

    >>> tokenizer = CharTokenizer("hello")
    >>> tokenizer.encode("hole")
    [1, 3, 2, 0]
    >>> tokenizer.decode([1, 0, 2, 2, 3])
    'hello'
    """

    def __init__(self, text: str | None = None, *, bos: bool = False):
        self.bos = bos
        self.fit("".join(map(chr, range(32, 127))) if text is None else text)

    def fit(self, text: str) -> None:
        """Rebuilds the vocabulary from the characters of `text`."""
        self.characters = sorted(set(text))
        codes = np.array([ord(c) for c in self.characters], dtype=np.int64)
        # From code point to id: one gather encodes a text of any length. -1 marks what is not known.
        self._id_of_code = np.full(int(codes.max()) + 2 if codes.size else 1, -1, dtype=np.int32)
        self._id_of_code[codes] = np.arange(codes.size, dtype=np.int32)

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + self.bos

    @property
    def bos_id(self) -> int | None:
        return len(self.characters) if self.bos else None

    def token_bytes(self) -> np.ndarray:
        lengths = [len(c.encode("utf-8", "surrogatepass")) for c in self.characters]
        return np.array(lengths + [0] * self.bos, dtype=np.int32)

    def encode(self, text: str) -> list[int]:
        """Raises UnknownCharacterError (a KeyError and a UserError) naming the first unknown character."""
        return self._encode(text).tolist()

    def _encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        # The last entry of the table is -1: it answers for every code point beyond.
        ids = self._id_of_code[np.minimum(codes, self._id_of_code.size - 1)]
        unknown = np.flatnonzero(ids < 0)
        if unknown.size:
            position = int(unknown[0])
            raise UnknownCharacterError(text[position], position, len(self.characters))
        return ids

    def encode_documents(self, texts: Iterable[str]) -> Iterable[np.ndarray]:
        return map(self._encode, texts)

    def decode(self, tokens: list[int]) -> str:
        """The text of the ids; a special token has none."""
        names = [*self.characters, ""] if self.bos else self.characters
        ids = np.asarray(tokens, dtype=np.int64).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(names):
            bad = next(i for i in ids if not 0 <= i < len(names))
            raise UserError(f"token {bad} is outside the vocabulary of {len(names)}.")
        return "".join([names[i] for i in ids])

    def save(self, path: str | Path) -> None:
        """Writes the characters as JSON."""
        saved = {"format": "lmxlab-tokenizer", "kind": "char", "characters": "".join(self.characters), "bos": self.bos}
        atomic_write(path, json.dumps(saved) + "\n")


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises UserError when the tokenizer has more tokens than a model of `vocab_size`.

    It would give ids that the model has no embedding for. Fewer is fine: vocabularies are often rounded up.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary only {vocab_size}: it is not "
            "the tokenizer that the model was trained with; use the one that came with it."
        )


def load_tokenizer(spec: str | Path) -> CorpusTokenizer:
    """The tokenizer of a saved JSON file, of a folder, or of a spec.

    Args:
        spec: the path of a file that `save` wrote or of a `tokenizer.json` of the tokenizers library; a folder with a
            `tokenizer.json` or with GPT-2's `vocab.json` and `merges.txt`; "tiktoken:NAME"; "hf:REPO"; "glassllm".

    Raises:
        UserError: no such file, or none that holds a tokenizer; "char" and "bpe:SIZE", which need a text first.
    """
    kind, _, name = str(spec).partition(":")
    if kind == "tiktoken":
        return TiktokenTokenizer(name or "gpt2")
    if kind == "hf" and name:
        return HFTokenizer(name)
    if kind == "glassllm":
        from lmxlab.data.glassllm import glassllm_tokenizer  # it needs this module

        return glassllm_tokenizer(name or "en")
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "merges.txt").is_file() and not (path / "tokenizer.json").is_file():
            return BPETokenizer.from_gpt2_files(path)
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"no tokenizer {str(spec)!r}: give char, bpe:SIZE (such as bpe:1024), tiktoken:NAME, hf:REPO, glassllm, or "
            "the path of a tokenizer's JSON file."
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if "model" in saved:
            return BPETokenizer.load(path)
        if saved["kind"] == "char":
            return CharTokenizer(saved["characters"], bos=saved["bos"])
        return {"tiktoken": TiktokenTokenizer, "hf": HFTokenizer}[saved["kind"]](saved["name"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no tokenizer that lmxlab can read: save one with `tokenizer.save`.") from error
