"""Speculative decoding (2211.17192): tokens that a drafter proposes are verified by the target in one pass."""

from typing import Any, NamedTuple

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.drafters import Draft, Drafter, ModelDrafter
from lmxlab.inference.rollback import Mark
from lmxlab.inference.sampling import one_prompt
from lmxlab.models.base import LanguageModel, check_tokens, evaluating
from lmxlab.models.decoding import prefill
from lmxlab.models.sampling import Keys, Sampler


def speculative_decode(
    target_model: LanguageModel,
    draft_model: LanguageModel | Drafter,
    prompt: mx.array,
    max_tokens: int = 100,
    draft_tokens: int = 4,
    temperature: float = 0.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
) -> tuple[mx.array, dict[str, float]]:
    """Continues a prompt as the target alone would, in distribution, with fewer of its passes.

    A proposed token x is accepted with probability min(1, p(x) / q(x)), p the target's and q the drafter's
    distribution, temperature and limits included; the first that is not is replaced by a draw from (p - q)+, and
    after a proposal that was accepted whole comes a draw from p. Greedy decoding gives the target's greedy text.

    Args:
        draft_model: a model of the same tokenizer, or another drafter (see `drafters`), new for each text.
        prompt: token ids (1, T) or (T,).
        max_tokens: new tokens, exactly.
        draft_tokens: how many tokens to propose at a time.
        temperature, top_k, top_p, min_p, seed: as in `generate`.

    Returns:
        (1, T + max_tokens), and `acceptance_rate`, `total_drafted`, `total_accepted`.

    Raises:
        UserError: a drafter with another vocabulary, or an argument out of its range.
    """
    prompt = one_prompt(prompt)
    if max_tokens < 0 or draft_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens} and draft_tokens {draft_tokens}; give at least 0 and 1")
    drafter = ModelDrafter(draft_model) if isinstance(draft_model, LanguageModel) else draft_model
    vocab_size = target_model.config.vocab_size
    if drafter.vocab_size != vocab_size:
        raise UserError(
            f"The drafter knows {drafter.vocab_size} tokens and the target {vocab_size}: they must have been trained "
            "with the same tokenizer"
        )
    check_tokens(prompt, vocab_size)
    sampler, keys = Sampler(temperature, top_k, top_p, min_p=min_p), Keys(seed)
    drafting = draft_model if isinstance(draft_model, LanguageModel) else target_model
    with evaluating(target_model), evaluating(drafting):
        new, drafted, accepted = _decode(target_model, drafter, prompt, max_tokens, draft_tokens, sampler, keys)
    rate = accepted / drafted if drafted else 0.0
    stats = {"acceptance_rate": rate, "total_drafted": float(drafted), "total_accepted": float(accepted)}
    tokens = mx.array([new], prompt.dtype).reshape(1, -1)
    return mx.concatenate([prompt, tokens], axis=1), stats


def _decode(
    target: LanguageModel,
    drafter: Drafter,
    prompt: mx.array,
    max_tokens: int,
    draft_tokens: int,
    sampler: Sampler,
    keys: Keys,
) -> tuple[list[int], int, int]:
    """The new tokens, and how many were drafted and accepted."""
    cache = target.make_cache()
    text: list[int] = []
    drafted = accepted = 0
    new: list[int] = prompt[0].tolist()  # type: ignore[assignment]
    hidden = _read_prompt(target, prompt, cache)  # of the text without its last token
    while len(text) < max_tokens:
        wanted = max(1, min(draft_tokens, max_tokens - len(text) - 1))  # after the accepted ones comes one more
        draft = drafter.draft(new, hidden, wanted, sampler, keys)
        last = new[-1]
        x = mx.concatenate([mx.array([[last]], draft.tokens.dtype), draft.tokens], axis=1)
        mark = Mark(cache)
        states, _ = target.hidden_states(x, cache)
        verdict = verify(draft, sampler.probabilities(target.logits(states)[0]), keys)
        mx.eval(draft.tokens, *verdict)
        n_accepted: int = verdict.n_accepted.item()  # type: ignore[assignment]
        proposed: list[int] = draft.tokens[0].tolist()  # type: ignore[assignment]
        new = [*proposed[:n_accepted], verdict.next_token.item()]  # type: ignore[list-item]
        drafted, accepted = drafted + len(proposed), accepted + n_accepted
        text += new
        hidden = states[:, : n_accepted + 1]
        known = mark.rewind(x.shape[1], n_accepted + 1)
        if known <= n_accepted:
            target.hidden_states(x[:, known : n_accepted + 1], cache)
    return text[:max_tokens], drafted, accepted


class Verdict(NamedTuple):
    """How many of the proposed tokens were accepted, and the token that comes after them."""

    n_accepted: mx.array
    next_token: mx.array


def verify(draft: Draft, target: mx.array, keys: Keys) -> Verdict:
    """Accepts tokens of a draft so that what comes out is distributed as the target (2211.17192, algorithm 1).

    Args:
        draft: n tokens.
        target: probabilities of the target (n + 1, V): before each of the tokens, and after the last.
    """
    n, vocab_size = draft.tokens.shape[1], target.shape[-1]
    ids = draft.tokens[0]
    q = draft.probabilities
    if q is None:
        q = (ids[:, None] == mx.arange(vocab_size)).astype(target.dtype)
    p_of_draft = mx.take_along_axis(target[:n], ids[:, None], axis=1)[:, 0]
    q_of_draft = mx.take_along_axis(q, ids[:, None], axis=1)[:, 0]
    lucky = mx.random.uniform(shape=(n,), key=keys()) * q_of_draft < p_of_draft
    n_accepted = mx.cumprod(lucky.astype(mx.int32)).sum() if n else mx.array(0)
    q = mx.concatenate([q, mx.zeros((1, vocab_size), q.dtype)])
    p = target[n_accepted]
    residual = mx.maximum(p - q[n_accepted], 0)
    residual = mx.where(residual.sum() > 0, residual, p)  # p = q, but for rounding
    return Verdict(n_accepted, mx.random.categorical(mx.log(residual), key=keys()))


def _read_prompt(target: LanguageModel, prompt: mx.array, cache: list[Any]) -> mx.array | None:
    """Reads all but the last token of the prompt; their hidden states (1, T - 1, d_model), None if there are none."""
    if prompt.shape[1] == 1:
        return None
    parts: list[mx.array] = []
    rest = prefill(target, prompt[:, :-1], cache, parts)
    states, _ = target.hidden_states(rest, cache)
    return mx.concatenate([*parts, states], axis=1)
