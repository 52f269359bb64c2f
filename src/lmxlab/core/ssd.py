"""Structured state-space duality (2405.21060): a linear recurrence with scalar decays, in chunks or step by step.

    h_t = exp(a_t) h_{t-1} + b_t u_t^T,    y_t = c_t^T h_t,    a_t <= 0

for every head, with b_t and c_t (N channels) shared by the heads of a group and u_t (P channels) a head's own.
"""

import mlx.core as mx

from lmxlab.core.mask import causal

# Multiples of 1 / 256 below 2^24 / 256 = 65,536 are exact in float32, and so are their sums and differences.
_STEPS = 256.0


def ssd(
    u: mx.array, log_decay: mx.array, b: mx.array, c: mx.array, state: mx.array, chunk: int
) -> tuple[mx.array, mx.array]:
    """Runs the recurrence over T tokens by products of matrices within and between chunks (section 6).

    Time and memory are linear in T: only states at the borders of chunks exist.

    Args:
        u: what is written, (B, T, H, P), float32 like all that follow.
        log_decay: a_t, (B, T, H).
        b, c: (B, T, G, N), where G divides H.
        state: before the first token, (B, G, N, H / G * P).
        chunk: tokens per chunk. The result does not depend on it.

    Returns:
        y (B, T, H, P) and the state after the last token.
    """
    batch, length, heads, width = u.shape
    groups, channels = b.shape[2:]
    size = min(chunk, length)
    n_chunks = -(-length // size)
    missing = n_chunks * size - length
    if missing:  # tokens that write nothing and decay nothing
        u, log_decay, b, c = (mx.pad(a, [(0, 0), (0, missing)] + [(0, 0)] * (a.ndim - 2)) for a in (u, log_decay, b, c))
    per_group = heads // groups
    b = b.reshape(batch, n_chunks, size, groups, channels).swapaxes(2, 3)
    c = c.reshape(batch, n_chunks, size, groups, channels).swapaxes(2, 3)
    u = u.reshape(batch, n_chunks, size, groups, per_group, width)
    a = log_decay.reshape(batch, n_chunks, size, groups, per_group).transpose(0, 1, 3, 4, 2)
    decay, kept, since_start = _decays(a)

    # Within a chunk: masked attention without softmax.
    scores = (c @ b.swapaxes(-1, -2))[:, :, :, None] * decay  # (B, chunks, G, H / G, size, size)
    inside = scores @ u.transpose(0, 1, 3, 4, 2, 5)  # (B, chunks, G, H / G, size, P)

    # What each chunk adds to the state by its end, then the states that chunks begin with, one after another.
    to_end = decay[..., -1, :].transpose(0, 1, 2, 4, 3)  # (B, chunks, G, size, H / G)
    written = (u.swapaxes(2, 3) * to_end[..., None]).reshape(batch, n_chunks, groups, size, -1)
    added = b.swapaxes(-1, -2) @ written  # (B, chunks, G, N, H / G * P)
    kept = mx.repeat(kept, width, axis=-1)[..., None, :]  # (B, chunks, G, 1, H / G * P)
    starts = []
    for i in range(n_chunks):
        starts.append(state)
        state = kept[:, i] * state + added[:, i]
    carried = (c @ mx.stack(starts, axis=1)).reshape(batch, n_chunks, groups, size, per_group, width)
    carried = carried * since_start.swapaxes(-1, -2)[..., None]
    y = (inside.swapaxes(3, 4) + carried).swapaxes(2, 3).reshape(batch, n_chunks * size, heads, width)
    return y[:, :length], state


def ssd_step(u: mx.array, log_decay: mx.array, b: mx.array, c: mx.array, state: mx.array) -> tuple[mx.array, mx.array]:
    """`ssd` of one token by the recurrence itself; shapes as there, with T = 1."""
    batch, width = u.shape[0], u.shape[-1]
    groups, channels = b.shape[2:]
    decay = mx.repeat(mx.exp(log_decay).reshape(batch, groups, 1, -1), width, axis=-1)
    write = b.reshape(batch, groups, channels, 1) * u.reshape(batch, groups, 1, -1)
    state = decay * state + write
    return (c.reshape(batch, groups, 1, channels) @ state).reshape(u.shape), state


def ssd_flops(heads: int, width: int, groups: int, channels: int, chunk: int, length: int) -> int:
    """FLOPs per token of the matrix products of `ssd` over a sequence whose last state nobody asks for, as in training.

    They depend on the length only by the first chunk and by a last, incomplete one.
    """
    size = min(chunk, length)
    padded = -(-length // size) * size
    within = size * (groups * channels + heads * width)  # scores, and scores times u
    states = channels * heads * width  # what is read from the state that a chunk begins with
    if padded > size:
        states *= 2  # what is added to it
    return 2 * (within + states) * padded // length


def _decays(a: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """From log decays (..., size): decays between all pairs (..., size, size), over a chunk (...), since its start.

    The sum of a over (j, i] is a difference of prefix sums, which in float32 would lose what a chunk's strong decays
    sum up to. So each a is a multiple of 1 / 256, whose sums are exact, and a small remainder.
    """
    coarse = mx.stop_gradient(mx.round(a * _STEPS) / _STEPS)
    coarse, fine = mx.cumsum(coarse, axis=-1), mx.cumsum(a - coarse, axis=-1)
    between = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    decay = mx.exp(mx.where(causal(a.shape[-1], a.shape[-1]), between, -mx.inf))
    since_start = mx.exp(coarse + fine)
    return decay, since_start[..., -1], since_start
