"""Tokenizers of others: tiktoken's encodings and those of Hugging Face repositories. Saved, they are a name."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmxlab.data.bpe import byte_lengths, encode_texts
from lmxlab.errors import MissingExtraError, UserError
from lmxlab.files import atomic_write


class TiktokenTokenizer:
    """A tiktoken encoding: "gpt2", "cl100k_base", ... Its file is downloaded once, by tiktoken.

    Raises:
        MissingExtraError: tiktoken is not installed.
        UserError: no such encoding, or it could not be downloaded.
    """

    def __init__(self, encoding_name: str = "gpt2"):
        try:
            import tiktoken
        except ImportError as error:
            raise MissingExtraError("TiktokenTokenizer needs tiktoken: pip install 'lmxlab[tiktoken]'") from error
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
        _save_name(path, "tiktoken", self.encoding_name)


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
            raise MissingExtraError("HFTokenizer needs transformers: pip install 'lmxlab[hf]'") from error
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

    def apply_chat_template(self, messages: list[dict[str, str]], open_turn: bool = True) -> str:
        """The messages as the repository's template writes them; with `open_turn`, up to where an answer begins.

        Raises:
            UserError: the repository has no template, or it refuses the messages.
        """
        if not self._tokenizer.chat_template:
            raise UserError(f"the tokenizer of {self.repo_id!r} has no chat template: give plain texts.")
        from jinja2 import TemplateError  # transformers renders with it

        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
        except TemplateError as error:
            raise UserError(f"the chat template of {self.repo_id!r} refuses the messages: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes the repository's name: its files belong to the hub's cache."""
        _save_name(path, "hf", self.repo_id)


def _save_name(path: str | Path, kind: str, name: str) -> None:
    atomic_write(path, json.dumps({"format": "lmxlab-tokenizer", "kind": kind, "name": name}) + "\n")
