import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxlab.core.short_conv import ShortConv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_every_channel_is_filtered_by_itself_over_the_past(length: int, bias: bool) -> None:
    conv = ShortConv(3, kernel_size=4, bias=bias)
    x, weight = np.random.default_rng(0).normal(size=(2, length, 3)), np.array(conv.weight)
    expected = np.zeros_like(x) + (np.array(conv.bias) if bias else 0)
    for t in range(length):
        for k in range(4):
            if t - 3 + k >= 0:
                expected[:, t] += weight[:, 0, k] * x[:, t - 3 + k]
    expected /= 1 + np.exp(-expected)
    out, tail = conv(mx.array(x.astype(np.float32)))
    np.testing.assert_allclose(np.array(out), expected, atol=1e-6)
    padded = np.concatenate([np.zeros((2, 3, 3)), x], axis=1)
    np.testing.assert_allclose(np.array(tail), padded[:, -3:], atol=1e-6)


@pytest.mark.parametrize("parts", [[1] * 9, [4, 5], [2, 1, 6]], ids=str)
def test_parts_that_continue_from_a_tail_equal_the_whole(parts: list[int]) -> None:
    conv = ShortConv(5, kernel_size=4, bias=True)
    x = mx.random.normal((2, 9, 5))
    whole, last = conv(x)
    outs, tail, start = [], None, 0
    for n in parts:
        out, tail = conv(x[:, start : start + n], tail)
        outs.append(out)
        start += n
    assert mx.array_equal(mx.concatenate(outs, axis=1), whole)
    assert mx.array_equal(tail, last)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_the_dtype_is_kept(dtype: mx.Dtype) -> None:
    conv = ShortConv(4, bias=True)
    conv.set_dtype(dtype)
    x = mx.random.normal((1, 6, 4)).astype(dtype)
    out, tail = conv(x)
    assert out.dtype == tail.dtype == dtype
    gradient = nn.value_and_grad(conv, lambda x: conv(x)[0].sum())(x)[1]
    assert gradient["weight"].dtype == dtype and mx.isfinite(gradient["weight"]).all()
