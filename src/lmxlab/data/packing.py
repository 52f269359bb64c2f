"""Documents of any length in rows of one length: packed, never cut where they fit, and kept apart."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab.errors import UserError

IGNORED = -100  # as target: is not scored


class PackedRows:
    """Documents side by side in rows: best-fit decreasing, which takes at most 11/9 of the fewest possible rows.

    A document of n tokens takes n - 1 places: inputs are all but its last token, targets all but its first. So nothing
    is predicted across documents, and no place is lost at their ends. One longer than a row is cut into pieces of whole
    rows and a rest, each target in one piece; one of fewer than 2 tokens has no target and is left out. Free places at
    the end of a row have target -100 and a segment of their own.

    Args:
        documents: (n,) integers each.
        seq_len: places in a row.
        scored: for each document (n,) booleans: which of its tokens are learned; by default all.
        padding: the token in free places.

    Attributes:
        x, y, segments: (rows, seq_len) int32; segments count the documents of each row from 0.
        fill: the share of places that hold a document.
        n_cut, n_left_out: documents longer than a row, and too short.

    Raises:
        UserError: no document with a target, or `scored` of other lengths.

    >>> rows = PackedRows([[1, 2, 3], [4, 5, 6, 7], [8, 9]], seq_len=4)
    >>> rows.x.tolist(), rows.y.tolist(), rows.segments.tolist()
    ([[4, 5, 6, 8], [1, 2, 0, 0]], [[5, 6, 7, 9], [2, 3, -100, -100]], [[0, 0, 0, 1], [0, 0, 1, 1]])
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int] | np.ndarray],
        seq_len: int,
        scored: Sequence[Sequence[bool] | np.ndarray] | None = None,
        padding: int = 0,
    ):
        if seq_len < 1:
            raise UserError(f"seq_len must be at least 1, got {seq_len}.")
        if scored is not None and [len(mask) for mask in scored] != [len(document) for document in documents]:
            raise UserError("scored must say of every token of every document whether it is learned.")
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        for i, document in enumerate(documents):
            tokens = np.asarray(document, dtype=np.int32)
            targets = tokens if scored is None else np.where(scored[i], tokens, IGNORED).astype(np.int32)
            for start in range(0, len(tokens) - 1, seq_len):
                end = start + seq_len
                pieces.append((tokens[start : min(end, len(tokens) - 1)], targets[start + 1 : end + 1]))
        if not pieces:
            raise UserError("Not enough data: no document has 2 tokens or more; give longer ones.")
        self.n_cut = sum(len(document) - 1 > seq_len for document in documents)
        self.n_left_out = sum(len(document) < 2 for document in documents)
        rows = pack([len(x) for x, _ in pieces], seq_len)
        self.x = np.full((len(rows), seq_len), padding, np.int32)
        self.y = np.full((len(rows), seq_len), IGNORED, np.int32)
        self.segments = np.zeros((len(rows), seq_len), np.int32)
        for row, members in enumerate(rows):
            place = 0
            for number, member in enumerate(members):
                x, y = pieces[member]
                part = slice(place, place + len(x))
                self.x[row, part], self.y[row, part], self.segments[row, part] = x, y, number
                place += len(x)
            self.segments[row, place:] = len(members)
        self.fill = sum(len(x) for x, _ in pieces) / self.x.size

    def __len__(self) -> int:
        return len(self.x)


class PackedBatches:
    """Endless batches (x, y, segments), each (batch_size, seq_len) int32, of packed rows in a seeded order.

    Give them to a Trainer: its objectives keep the documents apart. An epoch has every row once; a batch that it does
    not fill is filled from the next. The position can be saved and restored.

    Args:
        rows: the packed documents.
        batch_size: rows of a batch.
        seed: decides the order.
    """

    def __init__(self, rows: PackedRows, batch_size: int, seed: int = 0):
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self._begin(0)

    def _begin(self, epoch: int, position: int = 0) -> None:
        self.epoch, self._position = epoch, position
        self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def __iter__(self) -> "PackedBatches":
        return self

    def __next__(self) -> tuple[mx.array, mx.array, mx.array]:
        chosen: list[int] = []
        while len(chosen) < self.batch_size:
            if self._position == len(self.rows):
                self._begin(self.epoch + 1)
            taken = self._order[self._position : self._position + self.batch_size - len(chosen)]
            self._position += len(taken)
            chosen += taken.tolist()
        x, y, segments = (mx.array(array[chosen]) for array in (self.rows.x, self.rows.y, self.rows.segments))
        return x, y, segments

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken; UserError when that was with other rows or another seed."""
        differ = [f"{k} {state.get(k)} (here {v})" for k, v in self._identity().items() if state.get(k) != v]
        if differ:
            raise UserError(f"the saved position is of other batches: {', '.join(differ)}; resume with the same data.")
        self._begin(int(state["epoch"]), int(state["position"]))

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "rows": len(self.rows), "seq_len": self.rows.x.shape[1]}


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items go into which bin: from the longest on, each into the fullest bin that has room, else a new one.

    >>> pack([3, 5, 4, 1], capacity=6)
    [[1, 3], [2], [0]]
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, number of the bin), sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[item], 0))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        if free > lengths[item]:
            insort(room, (free - lengths[item], number))
    return bins
