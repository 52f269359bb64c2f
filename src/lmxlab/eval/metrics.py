"""How well a model predicts text (perplexity, bits per byte), and how often its programs pass their tests (pass@k)."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import mlx.core as mx
import numpy as np

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, check_tokens, evaluating

Data = mx.array | Iterable[mx.array]


def perplexity(model: LanguageModel, data: Data) -> float:
    """exp of the mean nats per predicted token, every token with the same weight. Dropout is off.

    Args:
        data: token ids (batch, length), or several such arrays of any shapes. Each token but the first of a row is
            predicted from those before it.
    """
    nats, targets = _score(model, data)
    return math.exp(_sum(nats) / _count(targets))


def bits_per_byte(
    model: LanguageModel,
    data: Data,
    bytes_per_token: float = 1.0,
    *,
    token_bytes: Sequence[int] | np.ndarray | mx.array | None = None,
) -> float:
    """Bits that the model needs per byte of text: sum of nats / (ln 2 * bytes). Dropout is off.

    Args:
        data: as for `perplexity`.
        bytes_per_token: mean length of a token's text in bytes, where the exact lengths are not known.
        token_bytes: exact lengths, (vocab,), as `token_bytes()` of a tokenizer gives them: bytes of each token's raw
            text (not of a decoded and re-encoded one: a part of a character counts its own bytes). Tokens of 0 bytes,
            the special ones, are read but not scored. Wins over `bytes_per_token`.
    """
    nats, targets = _score(model, data)
    if token_bytes is None:
        if not bytes_per_token > 0:
            raise UserError(f"bytes_per_token is {bytes_per_token}; it must be above 0")
        return _sum(nats) / (math.log(2) * bytes_per_token * _count(targets))
    sizes = np.asarray(token_bytes, dtype=np.int64)
    most = max(int(row.max()) for row in targets)
    if most >= len(sizes):
        raise UserError(f"token_bytes has {len(sizes)} entries, and the data has token {most}; give the bytes of each")
    lengths = [sizes[row] for row in targets]
    n_bytes = sum(int(length.sum()) for length in lengths)
    if n_bytes == 0:
        raise UserError("The predicted tokens have no bytes at all (all special), so there are no bits per byte")
    scored = [row[length > 0] for row, length in zip(nats, lengths, strict=True)]
    return _sum(scored) / (math.log(2) * n_bytes)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that one of k samples passes, estimated from c passes among n: 1 - C(n-c, k) / C(n, k) (2107.03374).

    Raises:
        UserError: k > n or c > n, from which nothing can be estimated, or a negative count.

    >>> pass_at_k(n=10, c=3, k=1)
    0.3
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise UserError(f"pass_at_k needs 1 <= k <= n and 0 <= c <= n; it got n = {n}, c = {c}, k = {k}")
    # Exact in integers: the quotient of large binomials is not.
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def evaluate_pass_at_k(
    completions: list[list[str]], test_fn: Callable[[str], bool], k_values: list[int] | None = None
) -> dict[str, float]:
    """pass@k averaged over problems.

    Args:
        completions: for each problem, the samples drawn for it.
        test_fn: whether a sample passes.
        k_values: default [1, 5, 10].

    Returns:
        {"pass@1": ...}. Problems with fewer than k samples do not count; where none is left, the value is 0.0.
    """
    passes = [(len(samples), sum(map(bool, map(test_fn, samples)))) for samples in completions]
    result = {}
    for k in k_values or [1, 5, 10]:
        rates = [pass_at_k(n, c, k) for n, c in passes if n >= k]
        result[f"pass@{k}"] = sum(rates) / len(rates) if rates else 0.0
    return result


def _score(model: LanguageModel, data: Data) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Nats and ids of all predicted tokens, one flat array each per array of `data`."""
    nats, targets = [], []
    with evaluating(model):
        for tokens in _arrays(data):
            check_tokens(tokens, model.config.vocab_size)
            x, y = tokens[:, :-1], tokens[:, 1:]
            nats.append(np.array(model.nats(x, y), dtype=np.float64).reshape(-1))
            targets.append(np.array(y).reshape(-1))
    if not nats:
        raise UserError("There is no data to score: the list is empty")
    return nats, targets


def _arrays(data: Data) -> Iterator[mx.array]:
    for tokens in [data] if isinstance(data, mx.array) else data:
        if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] < 2:
            raise UserError(
                f"Data to score has shape {tuple(tokens.shape)}; give (batch, length) with length at least 2: "
                "a token to read and a token to predict"
            )
        yield tokens


def _sum(arrays: list[np.ndarray]) -> float:
    return math.fsum(float(array.sum()) for array in arrays)


def _count(arrays: list[np.ndarray]) -> int:
    return sum(array.size for array in arrays)
