"""A prediction head is causal, and its cached steps are the steps of its full pass."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from tests.models.architectures import SIZE, gap

from lmxlab.core.mtp import MTPHead
from lmxlab.models.llama import llama_config


@pytest.fixture
def head() -> MTPHead:
    return MTPHead(32, llama_config(**SIZE, n_kv_heads=2).block)


def test_it_is_a_block_over_both_norms_side_by_side(head: MTPHead) -> None:
    h, e = mx.random.normal((2, 6, 32)), mx.random.normal((2, 6, 32))
    assert {type(head.hidden_norm), type(head.embed_norm)} == {nn.RMSNorm}
    x = mx.concatenate([mx.fast.rms_norm(h, None, 1e-5), mx.fast.rms_norm(e, None, 1e-5)], -1)
    assert gap(head(h, e), head.block(x @ head.proj.weight.T, "causal")[0]) <= 1e-5


def test_a_head_is_causal_in_states_and_embeddings(head: MTPHead) -> None:
    h, e = mx.random.normal((2, 12, 32)), mx.random.normal((2, 12, 32))
    full = head(h, e)
    for changed in (
        head(mx.concatenate([h[:, :7], -h[:, 7:]], 1), e),
        head(h, mx.concatenate([e[:, :7], -e[:, 7:]], 1)),
    ):
        assert gap(changed[:, :7], full[:, :7]) == 0
        assert gap(changed[:, 7:], full[:, 7:]) > 1e-2


def test_cached_steps_equal_the_full_pass(head: MTPHead) -> None:
    h, e = mx.random.normal((1, 9, 32)), mx.random.normal((1, 9, 32))
    cache = head.make_cache()
    parts = [head(h[:, a:b], e[:, a:b], cache=cache) for a, b in ((0, 4), (4, 5), (5, 9))]
    assert gap(mx.concatenate(parts, axis=1), head(h, e)) <= 1e-5
