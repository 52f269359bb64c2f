"""The gated delta rule (2412.06464, section 3): a memory that fades, and is corrected where a key finds a wrong value.

    S_t = alpha_t S_{t-1} + beta_t k_t (v_t - (alpha_t S_{t-1})^T k_t)^T
    o_t = S_t^T q_t

The error is that of the *decayed* state. Two forms of it: step by step, for decoding, and chunkwise, for everything
else: within a chunk the corrections of all tokens solve one triangular system (the UT transform, 2406.06484 section
3.2), and only one state per chunk is kept, so that memory grows with the length, not with length times state.

Arrays are float32 throughout: a state that sums thousands of steps has no digits to spare.
"""

import mlx.core as mx

from lmxlab.core.kernels.passes import with_vjp
from lmxlab.core.unstack import unstack

CHUNK = 64
SMALLEST_BLOCK = 8  # inverted by a power series; larger blocks of a triangular matrix are put together from these
FEW_TOKENS = 4  # up to so many, steps cost less than the smallest chunk


def delta_rule(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """The gated delta rule in the form that suits the length.

    Args:
        q, k: (B, Hk, T, Dk) float32, Hk dividing H: each key head serves H / Hk consecutive value heads.
        v: (B, H, T, Dv) float32.
        log_decay: (B, H, T) float32, log(alpha), at most 0.
        beta: (B, H, T) float32, how much of the error is written; 0 writes nothing.
        state: (B, H, Dk, Dv) float32, what came before; None: nothing.

    Returns:
        out (B, H, T, Dv), and the state after the last token.
    """
    if state is None:
        state = mx.zeros((*v.shape[:2], k.shape[-1], v.shape[-1]))
    form = delta_rule_steps if v.shape[2] <= FEW_TOKENS else delta_rule_chunks
    return form(q, k, v, log_decay, beta, state)


def delta_rule_steps(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """`delta_rule` token by token; its products cost 4 Dk Dv FLOPs per token and value head."""
    share = v.shape[1] // k.shape[1]
    q, k = mx.repeat(q, share, axis=1), mx.repeat(k, share, axis=1)
    rows = (q, k, v, mx.exp(log_decay)[..., None], beta[..., None])
    out = []
    steps = zip(*(unstack(mx.moveaxis(row, 2, 0)[..., None, :]) for row in rows), strict=True)
    for q_t, k_t, v_t, alpha_t, beta_t in steps:
        state = state * alpha_t
        error = beta_t * (v_t - k_t @ state)
        state = state + k_t.swapaxes(-1, -2) * error
        out.append(q_t @ state)
    return mx.concatenate(out, axis=2), state


def delta_rule_chunks(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array, chunk: int = CHUNK
) -> tuple[mx.array, mx.array]:
    """`delta_rule` by chunks of `chunk` tokens, a power of two, or fewer where the sequence is shorter.

    With c_i the sum of the log decays of a chunk up to token i, and D_ij = exp(c_i - c_j) for j <= i, else 0:

        (I + strictly_lower(beta_i k_i^T k_j D_ij)) [U, W] = [beta_i v_i, beta_i exp(c_i) k_i]
        E = U - W S                    the corrections of the chunk, S the state before it
        o_i = exp(c_i) S^T q_i + sum_j (q_i^T k_j) D_ij E_j
        S' = exp(c_C) S + sum_j exp(c_C - c_j) k_j E_j^T
    """
    (batch, key_heads, length, _), heads = k.shape, v.shape[1]
    size = chunk_of(length, chunk)
    n_chunks = -(-length // size)
    share = heads // key_heads

    def chunks(x: mx.array) -> mx.array:
        """(B, heads, T, ...) -> (n, B, Hk, heads / Hk, size, ...), zeros after the end: they write and fade nothing."""
        pad = [(0, 0)] * x.ndim
        pad[2] = (0, n_chunks * size - length)
        x = mx.pad(x, pad) if pad[2][1] else x
        return mx.moveaxis(x.reshape(batch, key_heads, x.shape[1] // key_heads, n_chunks, size, *x.shape[3:]), 3, 0)

    q, k, v, log_decay, beta = (chunks(x) for x in (q, k, v, log_decay, beta))
    total = mx.cumsum(log_decay, axis=-1)
    fade, last = mx.exp(total)[..., None], total[..., -1:]
    between = mx.where(_lower(size), total[..., :, None] - total[..., None, :], -mx.inf)
    between = mx.exp(between)
    coupling = (k @ k.swapaxes(-1, -2)) * between * mx.where(_lower(size, -1), beta[..., None], 0.0)
    beta = beta[..., None]
    wanted = unit_lower_inverse(coupling) @ mx.concatenate([v * beta, k * (beta * fade)], axis=-1)
    own, read = mx.split(wanted, [v.shape[-1]], axis=-1)
    read = mx.concatenate([read, q * fade], axis=-2)
    written = (k * mx.exp(last - total)[..., None]).swapaxes(-1, -2)
    state = state.reshape(batch, key_heads, share, *state.shape[2:])
    corrections, recalled = [], []
    per_chunk = (unstack(x) for x in (own, read, written, mx.exp(last)[..., None]))
    for own_i, read_i, written_i, fade_i in zip(*per_chunk, strict=True):
        found, answer = mx.split(read_i @ state, 2, axis=-2)
        correction = own_i - found
        state = fade_i * state + written_i @ correction
        corrections.append(correction)
        recalled.append(answer)
    out = mx.stack(recalled) + ((q @ k.swapaxes(-1, -2)) * between) @ mx.stack(corrections)
    out = mx.moveaxis(out, 0, 3).reshape(batch, heads, n_chunks * size, -1)[:, :, :length]
    return out, state.reshape(batch, heads, *state.shape[3:])


def chunk_of(length: int, chunk: int = CHUNK) -> int:
    """The size of the chunks for a sequence: `chunk`, or the least power of two that holds a shorter sequence."""
    return min(chunk, max(SMALLEST_BLOCK, 1 << (length - 1).bit_length()))


def flops_per_token(length: int, heads: int, key_heads: int, key_dim: int, value_dim: int) -> int:
    """FLOPs of the matrix products of `delta_rule` in a sequence of `length` tokens, per token of it.

    The state after the last chunk is not among them: only who goes on from it computes it.
    """
    if length <= FEW_TOKENS:
        return heads * 4 * key_dim * value_dim
    size = chunk_of(length)
    n_chunks = -(-length // size)
    inverse, block = 2 * 4 * SMALLEST_BLOCK**2 * size, SMALLEST_BLOCK
    while block < size:
        inverse += 2 * block**2 * size
        block *= 2
    scores = 2 * 2 * size**2 * key_dim  # k k^T and q k^T
    within = inverse + 2 * size**2 * (key_dim + 2 * value_dim)
    update = 2 * size * key_dim * value_dim
    total = n_chunks * (key_heads * scores + heads * (within + 2 * update)) + heads * (n_chunks - 1) * update
    return round(total / length)


def _lower(size: int, diagonal: int = 0) -> mx.array:
    return mx.tril(mx.ones((size, size), dtype=mx.bool_), diagonal)


def _inverse(n: mx.array) -> mx.array:
    """Block by block: [[A, 0], [B, D]]^-1 = [[A^-1, 0], [-D^-1 B A^-1, D^-1]].

    As accurate as forward substitution. A power series of the whole, (I - N)(I + N^2)(I + N^4)..., is not: where
    keys repeat, its terms grow like binomial coefficients before they cancel.
    """
    size, block = n.shape[-1], SMALLEST_BLOCK

    def blocks(row: int, step: int) -> mx.array:
        """The blocks at (row, 0), (row + step, step), ... in units of `block`: (..., number, block, block)."""
        starts = range(0, size, step * block)
        first = row * block
        return mx.stack([n[..., i + first : i + first + block, i : i + block] for i in starts], axis=-3)

    diagonal = -blocks(0, 1)
    inverse = mx.eye(block) + diagonal
    for _ in range(block.bit_length() - 2):
        diagonal = diagonal @ diagonal
        inverse = inverse + inverse @ diagonal
    while block < size:
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(lower @ (blocks(1, 2) @ upper))
        top = mx.concatenate([upper, mx.zeros_like(upper)], axis=-1)
        inverse = mx.concatenate([top, mx.concatenate([corner, lower], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :, :]


def _inverse_backward(_n: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    turned = inverse.swapaxes(-1, -2)
    return mx.where(_lower(inverse.shape[-1], -1), -(turned @ cotangent @ turned), 0.0)


unit_lower_inverse = with_vjp(_inverse, _inverse_backward)
"""(I + N)^-1 for strictly lower triangular N (..., n, n), n a power of two of at least 8; by matrix products alone."""
