"""Parameters that must not be rounded: they stay float32 whatever a model computes in, and are never decayed."""

import mlx.core as mx

# Rates and logarithms of rates of recurrences, which compound over a sequence (2312.00752, 2405.21060), and the
# biases that balance experts, which move by steps smaller than half precision resolves (2408.15664).
FLOAT32_PARAMETERS = ("A_log", "D", "dt_bias", "balance_bias")


def keeps_float32(path: str) -> bool:
    """Whether the parameter at a dotted path is one of them.

    >>> keeps_float32("blocks.0.attention.A_log"), keeps_float32("blocks.0.attention.q_proj.weight")
    (True, False)
    """
    return path.rsplit(".", 1)[-1] in FLOAT32_PARAMETERS


def cast(path: str, parameter: mx.array, dtype: mx.Dtype) -> mx.array:
    """The parameter in `dtype`, unless it is one of them, or holds no floating-point numbers."""
    if keeps_float32(path) or not mx.issubdtype(parameter.dtype, mx.floating):
        return parameter
    return parameter.astype(dtype)
