"""A tokenizer as tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer and mlx-lm load."""

import json
from typing import Any

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from lmxlab.data.bpe import BOS
from lmxlab.data.tokenizer import BPETokenizer, CharTokenizer, HFTokenizer, TiktokenTokenizer, Tokenizer
from lmxlab.errors import UserError


def tokenizer_files(tokenizer: Tokenizer, max_tokens: int) -> dict[str, str]:
    """The files, by name: loaded, they give the same ids and the same text.

    The token that begins each document also ends the one before it: it is written as both BOS and EOS, and not added
    to a text by itself.

    Args:
        max_tokens: the context length of the model.

    Raises:
        UserError: a tokenizer whose ranks belong to tiktoken, or one of another kind.
    """
    backend, separator = _backend(tokenizer)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
    }
    if separator is not None:
        config |= {"bos_token": separator, "eos_token": separator}
    return {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}


def _backend(tokenizer: Tokenizer) -> tuple[Backend, str | None]:
    """The tokenizers library's form of it, and the text of its separator."""
    if isinstance(tokenizer, CharTokenizer):
        return _characters(tokenizer), BOS if tokenizer.bos else None
    if isinstance(tokenizer, BPETokenizer | HFTokenizer):
        backend: Backend = tokenizer._backend
        return backend, None if tokenizer.bos_id is None else backend.id_to_token(tokenizer.bos_id)
    if isinstance(tokenizer, TiktokenTokenizer):
        raise UserError(
            f"the tokenizer tiktoken:{tokenizer.encoding_name} cannot be written as tokenizer.json: its ranks belong "
            "to tiktoken. Export without it, and encode with tiktoken."
        )
    raise UserError(f"a {type(tokenizer).__name__} cannot be written as tokenizer.json: export without it.")


def _characters(tokenizer: CharTokenizer) -> Backend:
    """One token per character: pairs without any merge.

    A character that is not known is left out, where CharTokenizer refuses it: mlx-lm tries a text of its own on
    loading, and a vocabulary with a token for the unknown would be larger than the model's.
    """
    backend = Backend(models.BPE({character: i for i, character in enumerate(tokenizer.characters)}, []))
    backend.decoder = decoders.Fuse()
    if tokenizer.bos:
        backend.add_special_tokens([AddedToken(BOS, special=True)])
    return backend
