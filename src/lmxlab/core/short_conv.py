"""The short depthwise convolution that recurrent mixers see their input through."""

import math

import mlx.core as mx
import mlx.nn as nn


class ShortConv(nn.Module):
    """silu(conv(x)): every channel is filtered by itself over the last `kernel_size` tokens (2312.00752, figure 3).

    out[t] = silu(bias + sum_k weight[:, 0, k] x[t - kernel_size + 1 + k]), with zeros before the first token.
    The weight is stored as PyTorch's Conv1d(groups=channels) does, (channels, 1, kernel_size).

    >>> conv = ShortConv(channels=3, kernel_size=4)
    >>> x = mx.random.normal((1, 5, 3))
    >>> whole, _ = conv(x)
    >>> first, tail = conv(x[:, :2])
    >>> second, tail = conv(x[:, 2:], tail)
    >>> mx.allclose(whole, mx.concatenate([first, second], axis=1)).item(), tail.shape
    (True, (1, 3, 3))
    """

    def __init__(self, channels: int, kernel_size: int = 4, bias: bool = False):
        super().__init__()
        self.weight = mx.zeros((channels, 1, kernel_size))
        if bias:
            self.bias = mx.zeros((channels,))
        self.init_weights()

    def init_weights(self, std: float = 0.0) -> None:
        """Uniform within 1 / sqrt(kernel_size), as Conv1d starts; the model's standard deviation does not apply."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        self.weight = mx.random.uniform(-bound, bound, self.weight.shape)
        if "bias" in self:
            self.bias = mx.random.uniform(-bound, bound, self.bias.shape)

    def __call__(self, x: mx.array, tail: mx.array | None = None) -> tuple[mx.array, mx.array]:
        """x (B, T, channels), the kernel_size - 1 inputs before it (None: zeros) -> output (B, T, channels), new tail.

        Inputs of padding tokens must be zeros, as those before the first token are.
        """
        reach = self.weight.shape[-1] - 1
        if tail is None:
            tail = mx.zeros((x.shape[0], reach, x.shape[2]), x.dtype)
        seen = mx.concatenate([tail, x], axis=1)
        out = seen[:, : x.shape[1]] * self.weight[:, 0, 0]
        for k in range(1, reach + 1):
            out = out + seen[:, k : k + x.shape[1]] * self.weight[:, 0, k]
        if "bias" in self:
            out = out + self.bias
        return nn.silu(out), seen[:, x.shape[1] :]
