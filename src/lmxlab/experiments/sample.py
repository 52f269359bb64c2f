"""Text from a trained model, at any length, without leaving the context it was trained on."""

from collections.abc import Iterator

import mlx.core as mx

from lmxlab.data import Tokenizer
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import stream_generate


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: list[int],
    max_tokens: int,
    context: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[str]:
    """Yields the text that follows `prompt` (token ids, at least one), piece by piece.

    When the trained `context` is full, generation starts again from its second half: a model that was trained on 64
    tokens has never seen a 65th position, and its text would fall apart there.
    """
    tokens = list(prompt)
    shown = tokenizer.decode(tokens)
    new = 0
    while new < max_tokens:
        window = tokens if len(tokens) < context else tokens[-max(1, context // 2) :]
        room = max(1, min(context - len(window), max_tokens - new))
        for token in stream_generate(
            model, mx.array([window]), max_tokens=room, temperature=temperature, top_k=top_k, top_p=top_p
        ):
            tokens.append(token)
            new += 1
            # Decode the whole text each time: a character may be made of several tokens. A vocabulary that was rounded
            # up has ids that stand for nothing.
            text = tokenizer.decode([token for token in tokens if token < tokenizer.vocab_size])
            if text.endswith("\ufffd"):
                continue
            yield text[len(shown) :]
            shown = text


def sample_text(
    model: LanguageModel, tokenizer: Tokenizer, prompt: list[int], max_tokens: int, context: int, seed: int
) -> str:
    """`max_tokens` of text after `prompt`; the same for the same seed, which it sets."""
    mx.random.seed(seed)
    return "".join(stream_text(model, tokenizer, prompt, max_tokens, context))
