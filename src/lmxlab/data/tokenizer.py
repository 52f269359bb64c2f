"""Tokenizers: text to token ids and back, each knowing how many bytes of text every token stands for.

Every tokenizer that prepares data has a `bos_id`: the special token that begins each document and thereby also ends
the one before it (None: a tokenizer of one running text, without separators). Specials stand for no text: 0 bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lmxlab.data.bpe import BPETokenizer, byte_lengths, encode_texts
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
        _save(path, kind="char", characters="".join(self.characters), bos=self.bos)


class TiktokenTokenizer:
    """A tiktoken encoding: "gpt2", "cl100k_base", ... Its file is downloaded once, by tiktoken.

    Raises:
        ImportError: tiktoken is not installed.
        UserError: no such encoding, or it could not be downloaded.
    """

    def __init__(self, encoding_name: str = "gpt2"):
        try:
            import tiktoken
        except ImportError as error:
            raise ImportError("TiktokenTokenizer needs tiktoken: pip install 'lmxlab[tiktoken]'") from error
        self.encoding_name = encoding_name
        try:
            self._encoding = tiktoken.get_encoding(encoding_name)
        except ValueError as error:
            known = ", ".join(tiktoken.list_encoding_names())
            raise UserError(f"Unknown tiktoken encoding {encoding_name!r}. Available: {known}") from error
        except OSError as error:  # what requests raises without a network
            raise UserError(
                f"the tiktoken encoding {encoding_name!r} could not be downloaded ({type(error).__name__}): it needs "
                "the network once; without it use tokenizer 'bpe:1024'."
            ) from error

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    @property
    def bos_id(self) -> int | None:
        return self._encoding.eot_token

    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        special = self._encoding.special_tokens_set
        special_ids = {self._encoding.encode_single_token(name) for name in special}
        for token in range(self.vocab_size):
            if token not in special_ids:
                try:
                    lengths[token] = len(self._encoding.decode_single_token_bytes(token))
                except KeyError:  # some encodings leave ids unused
                    continue
        return lengths

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_documents(self, texts: Iterable[str]) -> Iterable[np.ndarray]:
        return (np.array(self._encoding.encode_ordinary(text), dtype=np.int64) for text in texts)

    def decode(self, tokens: list[int]) -> str:
        return self._encoding.decode(np.asarray(tokens, dtype=np.int64).tolist())

    def save(self, path: str | Path) -> None:
        """Writes the encoding's name: its ranks belong to tiktoken."""
        _save(path, kind="tiktoken", name=self.encoding_name)


class HFTokenizer:
    """The tokenizer of a Hugging Face repository or local folder; `encode` adds no special tokens.

    Raises:
        ImportError: transformers is not installed.
        UserError: no tokenizer could be loaded from `repo_id`.
    """

    def __init__(self, repo_id: str):
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise ImportError("HFTokenizer needs transformers: pip install 'lmxlab[hf]'") from error
        self.repo_id = repo_id
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(repo_id)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"no tokenizer could be loaded from {repo_id!r}: {reason}") from error

    @property
    def vocab_size(self) -> int:
        return len(self._tokenizer)

    @property
    def eos_token_id(self) -> int | None:
        return self._tokenizer.eos_token_id

    @property
    def bos_token_id(self) -> int | None:
        return self._tokenizer.bos_token_id

    @property
    def bos_id(self) -> int | None:
        """The repository's BOS, or its EOS where it has no BOS (as GPT-2 uses one for both)."""
        return self.eos_token_id if self.bos_token_id is None else self.bos_token_id

    @property
    def _backend(self) -> Any:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"the tokenizer of {self.repo_id!r} has no tokenizer.json: the bytes of its tokens are not known; "
                "choose a repository with a fast tokenizer."
            )
        return backend

    def token_bytes(self) -> np.ndarray:
        lengths = byte_lengths(self._backend, self.vocab_size)
        lengths[[i for i in self._tokenizer.all_special_ids if i < self.vocab_size]] = 0
        return lengths

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def encode_documents(self, texts: Iterable[str]) -> Iterable[np.ndarray]:
        return encode_texts(self._backend, texts)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def save(self, path: str | Path) -> None:
        """Writes the repository's name: its files belong to the hub's cache."""
        _save(path, kind="hf", name=self.repo_id)


def load_tokenizer(spec: str | Path) -> CorpusTokenizer:
    """The tokenizer of a saved JSON file, of a folder, or of a spec.

    Args:
        spec: the path of a file that `save` wrote or of a `tokenizer.json` of the tokenizers library; a folder with a
            `tokenizer.json` or with GPT-2's `vocab.json` and `merges.txt`; "tiktoken:NAME"; "hf:REPO".

    Raises:
        UserError: no such file, or none that holds a tokenizer; "char" and "bpe:SIZE", which need a text first.
    """
    kind, _, name = str(spec).partition(":")
    if kind == "tiktoken":
        return TiktokenTokenizer(name or "gpt2")
    if kind == "hf" and name:
        return HFTokenizer(name)
    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "merges.txt").is_file() and not (path / "tokenizer.json").is_file():
            return BPETokenizer.from_gpt2_files(path)
        path = path / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"no tokenizer {str(spec)!r}: give char, bpe:SIZE (such as bpe:1024), tiktoken:NAME, hf:REPO, or the path "
            "of a tokenizer's JSON file."
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


def _save(path: str | Path, **values: Any) -> None:
    atomic_write(path, json.dumps({"format": "lmxlab-tokenizer", **values}, ensure_ascii=True, indent=1) + "\n")
