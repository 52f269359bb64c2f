"""Masks as numbers: what they allow, and that nothing infinite is left in any dtype."""

import math

import mlx.core as mx
import pytest

from lmxlab.core.attention import MHA
from lmxlab.core.config import BlockConfig
from lmxlab.core.mask import additive, causal, check_causal
from lmxlab.errors import UserError


def test_the_last_query_sees_every_key() -> None:
    assert causal(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_masked_is_finite_and_far_below_every_score(dtype: mx.Dtype) -> None:
    boolean = additive(mx.array([True, False]), 1, 2, dtype)
    numbers = additive(mx.array([0.0, -math.inf]), 1, 2, dtype)
    for mask in (boolean, numbers):
        assert mask.dtype == dtype and mask[0].item() == 0
        assert mx.isfinite(mask[1]).item() and mask[1].item() < -3e4
    assert additive(None, 3, 3, dtype).tolist() == [0]
    assert mx.array_equal(additive("causal", 2, 4, dtype) == 0, causal(2, 4))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_a_query_that_may_see_nothing_is_no_nan_in_any_dtype(dtype: mx.Dtype) -> None:
    attention = MHA(BlockConfig(d_model=8, n_heads=2))
    attention.set_dtype(dtype)
    x = mx.random.normal((1, 3, 8)).astype(dtype)
    for nothing in (mx.full((3, 3), -math.inf), mx.full((3, 3), mx.finfo(mx.float32).min)):
        assert mx.all(mx.isfinite(attention(x, nothing)[0])).item()


def test_a_recurrence_takes_a_mask_that_is_causal_in_any_form() -> None:
    visible = causal(2, 4)
    for mask in (None, "causal", visible, mx.where(visible, 0.0, -math.inf), additive("causal", 2, 4, mx.float16)):
        check_causal(mask, 2, 4, "mixer")
    for other in (mx.ones((2, 4), mx.bool_), mx.zeros((2, 4)), visible[:, 1:], mx.where(visible, -1.0, -math.inf)):
        with pytest.raises(UserError, match="mixer is causal by itself .* mask='causal'"):
            check_causal(other, 2, 4, "mixer")
