"""Curricula: the order in which a run meets its data, from short to long or from easy to hard (Bengio et al. 2009)."""

import logging
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lmxlab.data.batching import Batch
from lmxlab.errors import UserError

logger = logging.getLogger(__name__)


class Curriculum:
    """A fixed number of batches (x, y) of random windows, each drawn from the seed and its own number alone.

    The position can be saved and restored (`state_dict`), so that a resumed run meets what it would have met.
    """

    def __init__(self, n_batches: int, batch_size: int, seed: int):
        for name, value in (("batch_size", batch_size), ("number of batches", n_batches)):
            if value < 1:
                raise UserError(f"A curriculum needs a {name} of at least 1, got {value}.")
        self.n_batches, self.batch_size, self.seed = n_batches, batch_size, seed
        self._position = 0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> "Curriculum":
        return self

    def __next__(self) -> Batch:
        if self._position >= self.n_batches:
            raise StopIteration
        windows = self.windows(self._position, np.random.default_rng([self.seed, self._position]))
        self._position += 1
        array = mx.array(windows.astype(np.int32))
        return array[:, :-1], array[:, 1:]

    def windows(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """The rows of batch `number`, (batch_size, seq_len + 1)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"position": self._position, **self.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; UserError naming what differs when that was in another curriculum."""
        differ = [f"{k} {state.get(k)} (here {v})" for k, v in self.identity().items() if state.get(k) != v]
        if differ:
            raise UserError(f"The saved position is of another curriculum: {', '.join(differ)}; resume with the same.")
        self._position = int(state["position"])

    def identity(self) -> dict[str, Any]:
        """What decides the batches, as plain JSON values."""
        return {"seed": self.seed, "batch_size": self.batch_size, "n_batches": self.n_batches}


class LengthCurriculum(Curriculum):
    """What `length_curriculum` returns. `lengths` are the stages that are run, in tokens."""

    def __init__(self, tokens: np.ndarray, batch_size: int, lengths: list[int], batches_per_stage: int, seed: int):
        super().__init__(len(lengths) * batches_per_stage, batch_size, seed)
        self.lengths = lengths
        self._tokens, self._batches_per_stage = tokens, batches_per_stage

    def windows(self, number: int, rng: np.random.Generator) -> np.ndarray:
        return _draw(self._tokens, self.batch_size, self.lengths[number // self._batches_per_stage], rng)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "lengths": self.lengths, "tokens": len(self._tokens)}


class DifficultyCurriculum(Curriculum):
    """What `difficulty_curriculum` returns. `n_hard` is the number of hard rows in each batch."""

    def __init__(self, easy: np.ndarray, hard: np.ndarray, batch_size: int, seq_len: int, n_hard: list[int], seed: int):
        super().__init__(len(n_hard), batch_size, seed)
        self.n_hard = n_hard
        self._easy, self._hard, self._seq_len = easy, hard, seq_len

    def windows(self, number: int, rng: np.random.Generator) -> np.ndarray:
        n_hard = self.n_hard[number]
        shares = ((self._easy, self.batch_size - n_hard), (self._hard, n_hard))
        return np.concatenate([_draw(tokens, n, self._seq_len, rng) for tokens, n in shares if n])

    def identity(self) -> dict[str, Any]:
        own = {"seq_len": self._seq_len, "tokens": [len(self._easy), len(self._hard)], "n_hard": self.n_hard}
        return {**super().identity(), **own}


def length_curriculum(
    tokens: mx.array | np.ndarray,
    batch_size: int,
    min_seq_len: int = 32,
    max_seq_len: int = 512,
    n_stages: int = 4,
    batches_per_stage: int = 100,
    *,
    seed: int = 0,
) -> LengthCurriculum:
    """Random windows whose length rises linearly, stage by stage, from min_seq_len to max_seq_len.

    A compiled step is compiled once for each stage. Stages whose windows do not fit into the tokens are left out, and
    a warning says which. A single stage has max_seq_len.

    Args:
        tokens: (N,) integers.
        seed: decides the windows.

    Raises:
        UserError: numbers that cannot work; "Not enough data" when no stage fits.

    >>> [x.shape for x, y in length_curriculum(mx.arange(99), 2, 8, 16, n_stages=3, batches_per_stage=1)]
    [(2, 8), (2, 12), (2, 16)]
    """
    if not 1 <= min_seq_len <= max_seq_len:
        raise UserError(f"Lengths must rise from 1 or more, got min_seq_len {min_seq_len}, max_seq_len {max_seq_len}.")
    if n_stages < 1:
        raise UserError(f"n_stages must be at least 1, got {n_stages}.")
    held = _flat(tokens)
    rise = max_seq_len - min_seq_len
    stages = [min_seq_len + rise * i // (n_stages - 1) for i in range(n_stages)] if n_stages > 1 else [max_seq_len]
    lengths = [length for length in stages if length < len(held)]
    if not lengths:
        raise UserError(_too_short("The text", held, stages[0]))
    if len(lengths) < n_stages:
        left_out = ", ".join(str(length) for length in stages[len(lengths) :])
        logger.warning(
            "%d of %d stages are left out: windows of %s tokens and the last target do not fit into %d tokens",
            n_stages - len(lengths),
            n_stages,
            left_out,
            len(held),
        )
    return LengthCurriculum(held, batch_size, lengths, batches_per_stage, seed)


def difficulty_curriculum(
    easy_data: mx.array | np.ndarray,
    hard_data: mx.array | np.ndarray,
    batch_size: int,
    seq_len: int,
    n_batches: int = 200,
    warmup_fraction: float = 0.5,
    *,
    seed: int = 0,
) -> DifficultyCurriculum:
    """Batches of random windows whose share of hard rows rises linearly.

    Of the first round(warmup_fraction n_batches) batches, the warmup, the first has easy rows alone and the last hard
    ones alone, as have all after it; with a fraction of 0 all are hard. Rows are whole, so a share between is met over
    the batches, not in each.

    Args:
        easy_data, hard_data: (N,) integers each.
        seed: decides the windows.

    Raises:
        UserError: numbers that cannot work; "Not enough data" for one window of either kind.

    >>> difficulty_curriculum(mx.zeros(9), mx.ones(9), 4, 2, n_batches=8, warmup_fraction=0.625).n_hard
    [0, 1, 2, 3, 4, 4, 4, 4]
    """
    if not 0 <= warmup_fraction <= 1:
        raise UserError(f"warmup_fraction must lie between 0 and 1, got {warmup_fraction}.")
    if seq_len < 1:
        raise UserError(f"seq_len must be at least 1, got {seq_len}.")
    easy, hard = _flat(easy_data), _flat(hard_data)
    n_warmup = round(warmup_fraction * n_batches)
    # What is rounded off is made up for by the batches after it: with one row per batch, too, the share is met. In
    # integers: the sum of shares i / (n - 1) is i (i + 1) / 2 (n - 1), and a float just below a half is a row too few.
    i, twice = np.arange(n_warmup), 2 * max(n_warmup - 1, 1)
    rising = np.diff((batch_size * i * (i + 1) + twice // 2) // twice, prepend=0).tolist()
    n_hard = [*rising, *[batch_size] * (n_batches - n_warmup)]
    for name, tokens, needed in (("The easy text", easy, n_warmup > 0), ("The hard text", hard, any(n_hard))):
        if needed and len(tokens) <= seq_len:
            raise UserError(_too_short(name, tokens, seq_len))
    return DifficultyCurriculum(easy, hard, batch_size, seq_len, n_hard, seed)


def _flat(tokens: mx.array | np.ndarray) -> np.ndarray:
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise UserError(f"Tokens of a curriculum are one sequence, got an array of shape {array.shape}.")
    return array


def _too_short(what: str, tokens: np.ndarray, seq_len: int) -> str:
    return (
        f"Not enough data: {what.lower()} has {len(tokens)} tokens, one window takes {seq_len + 1} ({seq_len} and the "
        "last target); give more text or a shorter length."
    )


def _draw(tokens: np.ndarray, rows: int, seq_len: int, rng: np.random.Generator) -> np.ndarray:
    """Random windows, (rows, seq_len + 1)."""
    windows = sliding_window_view(tokens, seq_len + 1)
    return windows[rng.integers(0, len(windows), rows)]
