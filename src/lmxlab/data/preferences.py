"""Preference data: a prompt, a completion that was chosen and one that was rejected; from JSONL lines to batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from lmxlab.data.examples import (
    ExampleBatches,
    check_cut,
    check_fields,
    cut,
    encode_continuations,
    padded_length,
    read_rows,
)
from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import UserError

FIELDS = ("prompt", "chosen", "rejected")


class Pair(NamedTuple):
    """Token ids; the completions end with the token that ends a text, where the tokenizer has one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Preferences:
    """Pairs that are ready for training.

    Attributes:
        pairs: at least one.
        truncated: how many pairs lost tokens because they were too long.
        dropped: how many were left out because nothing to tell them apart was left of them.
        reference: log-probabilities of the chosen and the rejected completions under a reference, (2, N) float32, which
            `lmxlab.training.dpo.with_reference` adds.
    """

    pairs: list[Pair] = field(repr=False)
    truncated: int = 0
    dropped: int = 0
    reference: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UserError("There are no preference pairs: give at least one line, and room for its completions.")
        if self.reference is not None and self.reference.shape != (2, len(self.pairs)):
            raise UserError(f"The reference is {self.reference.shape}; it must be (2, {len(self.pairs)}).")

    def split(self, n_first: int) -> tuple["Preferences", "Preferences"]:
        """The first pairs, and the others: for training and for evaluation."""
        parts = slice(None, n_first), slice(n_first, None)
        cut = [(self.pairs[part], None if self.reference is None else self.reference[:, part]) for part in parts]
        first, second = (Preferences(pairs, reference=reference) for pairs, reference in cut)
        return first, second

    def in_order(self, batch_size: int) -> Iterator[tuple[mx.array, ...]]:
        """One pass over all pairs as they come, for evaluation, in the batches of `PreferenceBatches`."""
        return PreferenceBatches(self, batch_size).in_order()


def load_preferences(
    path: str | Path, tokenizer: Tokenizer, max_tokens: int = 512, truncate: str = "left", end_id: int | None = None
) -> Preferences:
    """The pairs of a JSONL file, one object with `prompt`, `chosen` and `rejected` per line, further fields ignored.

    Args:
        tokenizer: see `examples.encode_continuations`, which also tells of messages and `end_id`.
        max_tokens: longest sequence of prompt and completion.
        truncate: the side where too long ones lose tokens, of the prompt the same ones in both rows of a pair: see
            `examples.cut`. Pairs without a token to score, or whose completions are equal then, are dropped.

    Raises:
        UserError: naming the line with a missing or empty field, equal completions, or messages without a template.
    """
    return _preferences(read_rows(path), tokenizer, max_tokens, truncate, end_id)


def make_preferences(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    max_tokens: int = 512,
    truncate: str = "left",
    end_id: int | None = None,
) -> Preferences:
    """As `load_preferences`, from the objects themselves."""
    places = [(f"row {i}", row) for i, row in enumerate(rows)]
    return _preferences(places, tokenizer, max_tokens, truncate, end_id)


class PreferenceBatches(ExampleBatches):
    """The arrays that the objective `DPO` takes.

    chosen and rejected (B, T) int32 with zeros on the right, chosen_mask and rejected_mask (B, T) float32, 1 for the
    tokens of completions, and with a reference its log-probabilities of both, (B,) float32. T is a multiple of 32,
    or the length of the longest sequence of all.
    """

    def __init__(self, preferences: Preferences, batch_size: int, seed: int = 0):
        self.preferences = preferences
        tokens = [token for pair in preferences.pairs for part in pair for token in (*part, -1)]
        self._most = _longest(preferences.pairs)
        super().__init__(len(preferences.pairs), tokens, batch_size, seed)

    def batch(self, which: np.ndarray) -> tuple[mx.array, ...]:
        pairs = [self.preferences.pairs[i] for i in which]
        tokens = np.zeros((2, len(pairs), padded_length(_longest(pairs), self._most)), np.int32)
        masks = np.zeros(tokens.shape, np.float32)
        for i, pair in enumerate(pairs):
            start = len(pair.prompt)
            for side, completion in enumerate((pair.chosen, pair.rejected)):
                end = start + len(completion)
                tokens[side, i, :end] = pair.prompt + completion
                masks[side, i, start:end] = 1
        reference = self.preferences.reference
        scored = () if reference is None else tuple(mx.array(side[which]) for side in reference)
        return mx.array(tokens[0]), mx.array(tokens[1]), mx.array(masks[0]), mx.array(masks[1]), *scored


def _longest(pairs: Sequence[Pair]) -> int:
    return max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)


def _preferences(
    rows: list[tuple[str, Any]], tokenizer: Tokenizer, max_tokens: int, truncate: str, end_id: int | None
) -> Preferences:
    check_cut(max_tokens, truncate)
    pairs, truncated, dropped = [], 0, 0
    for place, row in rows:
        check_fields(place, row, FIELDS)
        if row["chosen"] == row["rejected"]:
            raise UserError(f"{place}: chosen and rejected are equal, so that nothing is preferred: remove that line.")
        whole = encode_continuations(place, row["prompt"], [row["chosen"], row["rejected"]], tokenizer, end_id)
        prompt, completions = cut(*whole, max_tokens, truncate)
        truncated += (prompt, completions) != whole
        pair = Pair(prompt, *completions)
        if pair.chosen == pair.rejected or not (pair.prompt and pair.chosen and pair.rejected):
            dropped += 1
        else:
            pairs.append(pair)
    return Preferences(pairs, truncated, dropped)
