"""Text from a model, piece by piece."""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import decode
from lmxlab.models.sampling import Keys, Sampler
from lmxlab.models.stop import Decodes, TextWatch, check_stop_strings


def stream_text(
    model: LanguageModel,
    tokenizer: Decodes,
    prompt: Sequence[int],
    max_tokens: int,
    sampler: Sampler | None = None,
    *,
    stop_tokens: Sequence[int] | None = None,
    stop_strings: Sequence[str] | None = None,
    seed: int | None = None,
    context: str | int = "window",
) -> Iterator[str]:
    """Yields the text that follows the token ids `prompt`, in whole characters, up to a stop token or stop string.

    Args:
        sampler: how tokens are drawn; by default as the model learned to.
        stop_tokens, stop_strings, seed, context: as in `generate`.
    """
    watch = TextWatch(tokenizer, prompt, check_stop_strings(stop_strings, tokenizer))
    ends = frozenset(stop_tokens or ())
    rows = mx.array([list(prompt)], mx.int32)
    for step in decode(model, rows, max_tokens, sampler or Sampler(), keys=Keys(seed), context=context):
        token = int(step.tokens.item())  # type: ignore[arg-type]
        if token in ends:
            break
        if text := watch.push(token).text:
            yield text
        if watch.ended:
            return
    if text := watch.finish().text:
        yield text
