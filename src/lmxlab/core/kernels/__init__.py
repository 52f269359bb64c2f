"""The operations whose fastest form depends on the device: the only part of a model that asks which one it runs on.

On a GPU they are MLX's own (but for cross-entropy, which is chunked everywhere). On a CPU, MLX computes exp, erf, tanh
and softmax one element at a time, and runs a fused kernel with a broadcast operand as a scalar loop, while fused
arithmetic on contiguous arrays is vectorised. So in float32 on a CPU these operations are arithmetic on contiguous
arrays, with gradients of their own.

One switch: `exact(True)`, or LMXLAB_EXACT=1 in the environment, gives MLX's own operations on a CPU too.
`benchmarks/` holds what this is worth, `tests/core/test_kernels.py` what it costs in accuracy.
"""

from lmxlab.core.kernels.activations import exp_neg, gelu, gelu_tanh, silu, swiglu
from lmxlab.core.kernels.attention import attention, softmax
from lmxlab.core.kernels.divergence import coarse_log_softmax, divergence
from lmxlab.core.kernels.layers import layer_norm, linear, rms_norm
from lmxlab.core.kernels.losses import cross_entropy, linear_cross_entropy, rows_at_once
from lmxlab.core.kernels.switch import exact, is_fast

__all__ = [
    "attention",
    "coarse_log_softmax",
    "cross_entropy",
    "divergence",
    "exact",
    "exp_neg",
    "gelu",
    "gelu_tanh",
    "is_fast",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "rms_norm",
    "rows_at_once",
    "silu",
    "softmax",
    "swiglu",
]
