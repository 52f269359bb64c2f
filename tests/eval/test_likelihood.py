"""Log-likelihoods of continuations, against one row at a time."""

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.eval.likelihood import continuation_likelihoods, windows
from lmxlab.models.base import LanguageModel
from lmxlab.models.gemma3 import gemma3_tiny
from lmxlab.models.llama import llama_tiny


def sharp(config) -> LanguageModel:
    model = LanguageModel(config)
    model.apply(lambda a: a + 0.2 * mx.random.normal(a.shape))
    return model


def one_by_one(model: LanguageModel, context: list[int], continuation: list[int], max_length: int):
    """Every token alone: its own pass over the tokens before it in its window."""
    tokens, total, greedy = context + continuation, 0.0, True
    for begin, end in windows(len(context), len(tokens), max_length):
        for at in range(begin, end):
            logits = model(mx.array([tokens[max(0, end - 1 - max_length) : at]]))[0][0, -1]
            total += (logits[tokens[at]] - mx.logsumexp(logits)).item()
            greedy = greedy and mx.argmax(logits).item() == tokens[at]
    return total, greedy


@pytest.mark.parametrize("factory", [llama_tiny, gemma3_tiny])
def test_equals_one_token_at_a_time_whatever_is_batched_and_shared(factory) -> None:
    model, rng = sharp(factory()), np.random.default_rng(0)
    story = rng.integers(0, 256, 40).tolist()
    pairs = [
        (story[:10], story[10:12]),
        (story[:10], [7]),  # the same input as the next one, another answer
        (story[:10], [8]),
        (story[:5], story[5:8]),  # the beginning of the first
        (story[:30], story[30:33]),  # loses the start of its context
        ([1], story),  # in windows
        ([1], []),
        *((rng.integers(0, 256, n).tolist(), rng.integers(0, 256, 3).tolist()) for n in (1, 4, 19)),
    ]
    best = mx.argmax(model(mx.array([story[:10]]))[0][0, -1]).item()
    pairs.append((story[:10], [best]))
    expected = [one_by_one(model, *pair, 16) for pair in pairs]
    for batch_tokens in (1, 64, 4096):
        found = continuation_likelihoods(model, pairs, 16, batch_tokens)
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=2e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert found[-1].greedy and found[6] == (0.0, True) and not found[5].greedy


def test_what_choices_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = LanguageModel(llama_tiny()), []
    inner = model.hidden_states
    monkeypatch.setattr(LanguageModel, "hidden_states", lambda self, x: shapes.append(x.shape) or inner(x))
    question = list(range(20))
    continuation_likelihoods(model, [(question, [i]) for i in range(50)] + [(question[:9], question[9:])], 64)
    assert shapes == [(1, 20)]


def test_what_cannot_be_scored_is_refused() -> None:
    model = LanguageModel(llama_tiny())
    with pytest.raises(ValueError, match="at least one token before it"):
        continuation_likelihoods(model, [([], [1])], 16)
    with pytest.raises(ValueError, match="from 1 to 256"):
        continuation_likelihoods(model, [([1], [256])], 16)
