"""A sample of what a trained model writes, at any length, without leaving the context it was trained on."""

from collections.abc import Sequence
from typing import Any

from lmxlab.data import Tokenizer
from lmxlab.models.base import LanguageModel
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text

TEMPERATURE = 0.8


def sample_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    max_tokens: int,
    context: int,
    seed: int,
    ends: Sequence[int] = (),
) -> str:
    """`max_tokens` of text after `prompt`, fewer where one of the tokens `ends` comes; the same for the same seed.

    A model that was trained on 64 tokens has never seen a 65th position, and its text would fall apart there: when the
    trained `context` is full, generation goes on from its second half.
    """
    options: dict[str, Any] = {"stop_tokens": ends, "seed": seed, "context": context}
    return "".join(stream_text(model, tokenizer, prompt, max_tokens, Sampler(TEMPERATURE), **options))
