import dataclasses

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.block import ConfigurableBlock
from lmxlab.core.config import BlockConfig
from lmxlab.core.position import ALiBi, NoPosition, RoPE

CONFIG = BlockConfig(d_model=16, n_heads=2, d_ff=24)


def weights(block: ConfigurableBlock) -> set[str]:
    return {name.split(".")[0] for name, _ in tree_flatten(block.parameters())}


def test_a_pre_norm_block_is_two_residual_sums() -> None:
    block, x = ConfigurableBlock(CONFIG), mx.random.normal((2, 5, 16))
    out, _ = block(x, "causal")
    middle = x + block.attention(block.attn_norm(x), mask="causal")[0]
    assert mx.allclose(out, middle + block.ffn(block.ffn_norm(middle)), atol=1e-6)


def test_a_post_norm_block_norms_the_sums() -> None:
    block = ConfigurableBlock(dataclasses.replace(CONFIG, pre_norm=False))
    x = mx.random.normal((2, 5, 16))
    middle = block.attn_norm(x + block.attention(x, mask="causal")[0])
    out, _ = block(x, "causal")
    assert mx.allclose(out, block.ffn_norm(middle + block.ffn(middle)), atol=1e-6)


def test_a_none_branch_contributes_nothing_and_has_no_weights() -> None:
    x = mx.random.normal((2, 5, 16))
    no_attention = ConfigurableBlock(dataclasses.replace(CONFIG, attention="none"))
    out, cache = no_attention(x)
    assert mx.allclose(out, x + no_attention.ffn(no_attention.ffn_norm(x)), atol=1e-6)
    assert cache is None and weights(no_attention) == {"ffn", "ffn_norm"}
    no_ffn = ConfigurableBlock(dataclasses.replace(CONFIG, ffn="none"))
    assert mx.allclose(no_ffn(x)[0], x + no_ffn.attention(no_ffn.attn_norm(x))[0], atol=1e-6)
    assert weights(no_ffn) == {"attention", "attn_norm"}
    neither = ConfigurableBlock(dataclasses.replace(CONFIG, attention="none", ffn="none"))
    assert mx.array_equal(neither(x)[0], x)


@pytest.mark.parametrize(
    ("position", "kind"),
    [("rope", RoPE), ("alibi", ALiBi), ("sinusoidal", NoPosition), ("learned", NoPosition), ("none", NoPosition)],
)
def test_a_block_holds_the_positions_that_attention_uses(position: str, kind: type) -> None:
    assert isinstance(ConfigurableBlock(dataclasses.replace(CONFIG, position=position)).position, kind)


@pytest.mark.parametrize("field", ["attention", "ffn", "norm", "position"])
def test_an_unknown_component_is_named(field: str) -> None:
    with pytest.raises(KeyError, match=rf"The {field} registry has no key 'mhaa'.*Available: \["):
        ConfigurableBlock(dataclasses.replace(CONFIG, **{field: "mhaa"}))


def test_dropout_works_in_training_only() -> None:
    block, x = ConfigurableBlock(dataclasses.replace(CONFIG, dropout=0.5)), mx.random.normal((1, 5, 16))
    assert not mx.array_equal(block(x)[0], block(x)[0])
    block.eval()
    assert mx.array_equal(block(x)[0], block(x)[0])


def test_a_block_computed_again_drops_the_same_numbers_in_both_passes() -> None:
    block = ConfigurableBlock(BlockConfig(d_model=16, n_heads=2, d_ff=32, dropout=0.5))
    x = mx.random.normal((2, 6, 16))

    def loss(x: mx.array) -> mx.array:
        mx.random.seed(5)
        return (block.recomputed(x, "causal") ** 2).mean()

    gradient = mx.grad(loss)(x)
    step = 1e-2
    slope = (loss(x + step * gradient) - loss(x - step * gradient)) / (2 * step)
    assert abs(float(slope / (gradient**2).sum()) - 1) < 0.01
    mx.random.seed(5)
    draws = [block.recomputed(x, "causal") for _ in range(2)]
    assert not mx.allclose(*draws)
