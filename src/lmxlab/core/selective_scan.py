"""Mamba-1's recurrence (2312.00752, algorithm 2): every channel has a state of its own, decaying at rates of its own.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,    y_t = C_t h_t

with h of N numbers for each of D channels. All states of T tokens would be N times as large as the activations, so
they exist for a stretch of tokens at a time, and for the backward pass they are computed again.
"""

import math

import mlx.core as mx

STRETCH_ELEMENTS = 1 << 22  # states that exist at one time, all tokens of a stretch together


def selective_scan(
    x: mx.array, dt: mx.array, rates: mx.array, b: mx.array, c: mx.array, state: mx.array, checkpoint: bool = False
) -> tuple[mx.array, mx.array]:
    """Runs the recurrence over T tokens, in memory that is linear in T and independent of N.

    Args:
        x, dt: (B, T, D), float32 like all that follow; dt is 0 where nothing happens.
        rates: A, (D, N), below 0.
        b, c: (B, T, N).
        state: before the first token, (B, D, N).
        checkpoint: keep no states for the backward pass.

    Returns:
        y (B, T, D) and the state after the last token.
    """
    length = x.shape[1]
    tokens = max(1, min(length, STRETCH_ELEMENTS // state.size))
    run = mx.checkpoint(_stretch) if checkpoint else _stretch
    outs = []
    for start in range(0, length, tokens):
        part = slice(start, start + tokens)
        y, state = run(x[:, part], dt[:, part], rates, b[:, part], c[:, part], state)
        outs.append(y)
    return mx.concatenate(outs, axis=1), state


def _stretch(
    x: mx.array, dt: mx.array, rates: mx.array, b: mx.array, c: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """L tokens in 2 sqrt(L) steps: first all chunks of sqrt(L) tokens side by side, then from chunk to chunk."""
    batch, length, width = x.shape
    size = math.isqrt(length - 1) + 1
    n_chunks = -(-length // size)
    if missing := n_chunks * size - length:
        x, dt, b, c = (mx.pad(a, [(0, 0), (0, missing), (0, 0)]) for a in (x, dt, b, c))
    x, dt, b, c = (a.reshape(batch, n_chunks, size, -1) for a in (x, dt, b, c))
    decay = mx.exp(dt[..., None] * rates)  # (B, chunks, size, D, N)
    write = (dt * x)[..., None] * b[..., None, :]

    # Within each chunk: the state from zero, and what is left by then of the state that the chunk begins with.
    own, left = write[:, :, 0], decay[:, :, 0]
    owns, lefts = [own], [left]
    for i in range(1, size):
        own, left = decay[:, :, i] * own + write[:, :, i], decay[:, :, i] * left
        owns.append(own)
        lefts.append(left)
    starts = []
    for i in range(n_chunks):
        starts.append(state)
        state = left[:, i] * state + own[:, i]
    states = mx.stack(owns, axis=2) + mx.stack(lefts, axis=2) * mx.stack(starts, axis=1)[:, :, None]
    y = (states @ c[..., None]).reshape(batch, n_chunks * size, width)
    return y[:, :length], state
