"""Matrix products in which every row meets the matrix of its own expert: the gathered matmul of mixtures of experts.

Rows are sorted by expert. MLX's gathered product then takes one row at a time on a GPU. On a CPU it calls the BLAS once
per gathered item, so there each item is a block of rows of one expert, the last one filled up: at most
rows / block + experts blocks, whatever the routing (2211.15841 does so on GPUs). No shape depends on the routing.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from lmxlab.core.kernels.passes import with_vjp
from lmxlab.core.kernels.switch import is_exact, is_fast

FEWEST_SORTED = 64  # choices; below, as in decoding, sorting costs more than it saves
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256


class Plan(NamedTuple):
    """Where the rows of a routing stand. N tokens make K choices each among E experts; there are S >= N K rows.

    Attributes:
        slots: (N, K) the row of each choice.
        sources: (S,) the token of each row; any one where a block is filled up.
        choices: (S,) the choice of each row as token * K + k; any one where a block is filled up.
        experts: (S / block,) the expert of each block of rows.
        spans: (E, 2) the first row and the end of each expert, filled-up rows left out; None if rows are not sorted.
        block: rows that are multiplied together.
    """

    slots: mx.array
    sources: mx.array
    choices: mx.array
    experts: mx.array
    spans: mx.array | None
    block: int


def plan_rows(indices: mx.array, n_experts: int, x: mx.array) -> Plan:
    """The plan for `indices` (N, K), the experts that the tokens x (N, D) have chosen."""
    n_tokens, n_choices = indices.shape
    rows = n_tokens * n_choices
    indices = mx.stop_gradient(indices)
    flat = indices.reshape(-1).astype(mx.int32)
    if rows < FEWEST_SORTED:
        choices = mx.arange(rows)
        return Plan(choices.reshape(indices.shape), choices // n_choices, choices, flat, None, 1)
    order = mx.argsort(flat)
    rank = mx.put_along_axis(mx.zeros_like(order), order, mx.arange(rows, dtype=order.dtype), axis=0)
    counts = count_choices(indices, n_experts)
    ends = mx.cumsum(counts)
    starts = ends - counts
    block = _block_size(rows, n_experts) if is_fast(x, elements=rows * x.shape[1]) else 1
    if block == 1:
        spans = mx.stack([starts, ends], axis=1).astype(mx.uint32)
        return Plan(rank.reshape(indices.shape), order // n_choices, order, flat[order], spans, 1)
    blocks = (counts + block - 1) // block
    last_blocks = mx.cumsum(blocks)
    firsts = (last_blocks - blocks) * block
    n_blocks = (rows + n_experts * (block - 1)) // block
    experts = (last_blocks <= mx.arange(n_blocks)[:, None]).sum(axis=1)
    experts = mx.minimum(experts, n_experts - 1)
    slots = (firsts - starts)[flat] + rank.astype(mx.int32)
    of_row = mx.repeat(starts[experts] - firsts[experts], block) + mx.arange(n_blocks * block)
    choices = order[mx.clip(of_row, 0, rows - 1)]
    spans = mx.stack([firsts, firsts + counts], axis=1).astype(mx.uint32)
    return Plan(slots.reshape(indices.shape), choices // n_choices, choices, experts, spans, block)


def count_choices(indices: mx.array, n_experts: int) -> mx.array:
    """How often each expert is chosen: (N, K) -> (E,) int32."""
    return (indices.reshape(-1, 1) == mx.arange(n_experts)).astype(mx.int32).sum(axis=0)


def to_rows(x: mx.array, plan: Plan) -> mx.array:
    """(N, D) tokens -> (S, D) rows."""
    if plan.spans is None:
        return mx.repeat(x, plan.slots.shape[1], axis=0)
    rows: mx.array = (_to_rows_forward if is_exact() else _to_rows)(x, plan.sources, plan.slots)
    return rows


def from_rows(rows: mx.array, weights: mx.array, plan: Plan) -> mx.array:
    """Rows (S, D) back to tokens (N, D), each the sum of its K rows times weights (N, K)."""
    if plan.spans is None:
        return (weights[:, None].astype(rows.dtype) @ rows.reshape(*weights.shape, -1))[:, 0]
    combine = _from_rows_forward if is_exact() else _from_rows
    out: mx.array = combine(rows, weights, plan.slots, plan.choices)
    return out


def expert_matmul(rows: mx.array, weight: mx.array, plan: Plan) -> mx.array:
    """Each row times the transposed matrix of its expert: (S, in), (E, out, in) -> (S, out)."""
    if plan.spans is None or is_exact():
        is_sorted = plan.spans is not None
        return _gathered(rows, weight.swapaxes(-1, -2), plan.experts, plan.block, is_sorted)
    out: mx.array = _expert_matmul(plan.block)(rows, weight, plan.experts, plan.spans)
    return out


def _block_size(rows: int, n_experts: int) -> int:
    """The power of two that takes least time, when a block costs about as much as 40 rows more than it has."""
    if rows < SMALLEST_BLOCK * n_experts:
        return 1
    best = 2 ** round(math.log2(math.sqrt(48 * rows / n_experts)))
    return min(max(best, SMALLEST_BLOCK), LARGEST_BLOCK)


def _gathered(rows: mx.array, matrices: mx.array, experts: mx.array, block: int, is_sorted: bool) -> mx.array:
    """(S, in) times (E, in, out), a block of rows at a time -> (S, out)."""
    items = rows.reshape(-1, block, rows.shape[-1])
    if mx.default_device() == mx.cpu and rows.dtype != mx.float32:
        # The CPU's gathered product knows float32 alone. Few rows read only their own experts' matrices.
        if len(experts) < len(matrices):
            return (items @ matrices[experts]).reshape(len(rows), -1)
        wide = _gathered(rows.astype(mx.float32), matrices.astype(mx.float32), experts, block, is_sorted)
        return wide.astype(rows.dtype)
    out = mx.gather_mm(items, matrices, rhs_indices=experts, sorted_indices=is_sorted)
    return out.reshape(len(rows), -1)


@cache
def _expert_matmul(block: int) -> Callable[..., Any]:
    def forward(rows: mx.array, weight: mx.array, experts: mx.array, spans: mx.array) -> mx.array:
        return _gathered(rows, weight.swapaxes(-1, -2), experts, block, is_sorted=True)

    def backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
        rows, weight, experts, spans = inputs
        d_rows = _gathered(cotangent, weight, experts, block, is_sorted=True)
        d_weight = mx.segmented_mm(cotangent.T, rows, spans)
        return d_rows, d_weight, mx.zeros_like(experts), mx.zeros_like(spans)

    return with_vjp(forward, backward)


# Gathering rows is fast, adding to scattered ones is not: both directions gather.


def _to_rows_forward(x: mx.array, sources: mx.array, slots: mx.array) -> mx.array:
    return x[sources]


def _to_rows_backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
    _, sources, slots = inputs
    return cotangent[slots].sum(axis=1), mx.zeros_like(sources), mx.zeros_like(slots)


def _from_rows_forward(rows: mx.array, weights: mx.array, slots: mx.array, choices: mx.array) -> mx.array:
    return (rows[slots] * weights[..., None].astype(rows.dtype)).sum(axis=1)


def _from_rows_backward(inputs: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
    rows, weights, slots, choices = inputs
    filling = slots.reshape(-1)[choices] != mx.arange(len(rows))
    scale = mx.where(filling, 0, weights.reshape(-1)[choices]).astype(rows.dtype)
    d_rows = cotangent[choices // weights.shape[1]] * scale[:, None]
    d_weights = (rows[slots] * cotangent[:, None]).astype(weights.dtype).sum(axis=-1)
    return d_rows, d_weights, mx.zeros_like(slots), mx.zeros_like(choices)


_to_rows = with_vjp(_to_rows_forward, _to_rows_backward)
_from_rows = with_vjp(_from_rows_forward, _from_rows_backward)
