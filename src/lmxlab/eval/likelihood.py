"""Log-likelihoods of continuations given their contexts, in batches that share what they have in common."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, evaluating

BATCH_TOKENS = 4096
MOST_LOGITS = 2**24  # that are held at once: 64 MB in float32


class Likelihood(NamedTuple):
    """Log-probability of a continuation in nats, and whether every token of it is the model's likeliest one."""

    log_prob: float
    greedy: bool


class _Row(NamedTuple):
    """Tokens that the model reads, and what it is asked about them: (position, next token, index of the request)."""

    tokens: tuple[int, ...]
    asked: list[tuple[int, int, int]]


def continuation_likelihoods(
    model: LanguageModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_length: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Likelihood]:
    """sum_i ln p(continuation_i | context, continuation_<i) for each pair of token lists. Dropout is off.

    A context that is too long loses its beginning. Inputs that are equal, or the beginning of another one (the choices
    of a question), are computed once.

    Args:
        pairs: (context, continuation) in token ids; the context has at least one token.
        max_length: how many tokens the model reads at once. A longer continuation is scored in windows of that length,
            each token in one of them.
        batch_tokens: about so many tokens are computed at once, those that fill up shorter rows included.

    Raises:
        UserError: an empty context, or an id outside the vocabulary.
    """
    vocab_size = model.config.vocab_size
    rows: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not context:
            raise UserError("A continuation needs at least one token before it: begin the context with BOS.")
        tokens = [*context, *continuation]
        if not 0 <= min(tokens) <= max(tokens) < vocab_size:
            raise UserError(
                f"Token ids reach from {min(tokens)} to {max(tokens)}; the model's vocabulary has {vocab_size} tokens: "
                "was the text encoded with the model's own tokenizer?"
            )
        for begin, end in windows(len(context), len(tokens), max_length):
            first = max(0, end - 1 - max_length)
            asked = [(at - 1 - first, tokens[at], index) for at in range(begin, end)]
            rows.setdefault(tuple(tokens[first : end - 1]), []).extend(asked)
    sums, greedy = np.zeros(len(pairs)), np.ones(len(pairs), dtype=bool)
    with evaluating(model):
        for batch in _batches(_without_beginnings(rows), batch_tokens):
            for owners, log_probs, is_best in _score(model, batch):
                np.add.at(sums, owners, log_probs)
                np.logical_and.at(greedy, owners, is_best)
    return [Likelihood(float(total), bool(best)) for total, best in zip(sums, greedy, strict=True)]


def windows(begin: int, end: int, max_length: int) -> Iterator[tuple[int, int]]:
    """Splits the tokens `begin` to `end` that are to be scored into ranges that one window of `max_length` can predict.

    >>> list(windows(1, 10, max_length=4)), list(windows(5, 7, max_length=4))
    ([(1, 5), (5, 9), (9, 10)], [(5, 7)])
    """
    for start in range(begin, end, max_length):
        yield start, min(start + max_length, end)


def _without_beginnings(rows: dict[tuple[int, ...], list[tuple[int, int, int]]]) -> list[_Row]:
    """Rows that are the beginning of no other one, longest first; each is asked for its beginnings as well.

    In sorted order a row is followed by those that it begins, and a model is causal: what comes later changes nothing.
    """
    kept: list[_Row] = []
    for tokens in sorted(rows, reverse=True):
        if kept and kept[-1].tokens[: len(tokens)] == tokens:
            kept[-1].asked.extend(rows[tokens])
        else:
            kept.append(_Row(tokens, list(rows[tokens])))
    return sorted(kept, key=lambda row: -len(row.tokens))


def _batches(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    while rows:
        n_rows = max(1, batch_tokens // len(rows[0].tokens))
        yield rows[:n_rows]
        rows = rows[n_rows:]


def _score(model: LanguageModel, rows: list[_Row]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is asked of the rows, in parts: index of the request, log-probability, is the token the likeliest."""
    length = len(rows[0].tokens)
    x = np.zeros((len(rows), length), dtype=np.int32)
    for row, line in zip(rows, x, strict=True):
        line[: len(row.tokens)] = row.tokens
    hidden, _ = model.hidden_states(mx.array(x))
    hidden = hidden.reshape(-1, hidden.shape[-1])
    asked = np.array([(i * length + at, token, owner) for i, row in enumerate(rows) for at, token, owner in row.asked])
    part = max(1, MOST_LOGITS // model.config.vocab_size)
    for start in range(0, len(asked), part):
        positions, targets, owners = asked[start : start + part].T
        logits = model.logits(hidden[mx.array(positions)]).astype(mx.float32)
        picked = mx.take_along_axis(logits, mx.array(targets)[:, None], axis=-1)[:, 0]
        log_probs, best = picked - mx.logsumexp(logits, axis=-1), mx.argmax(logits, axis=-1)
        yield owners, np.array(log_probs, dtype=np.float64), np.array(best) == targets
