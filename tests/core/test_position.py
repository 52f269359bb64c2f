import dataclasses
import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.attention import GQA
from lmxlab.core.config import BlockConfig
from lmxlab.core.position import ALiBi, Learned, NoPosition, RoPE, Sinusoidal, alibi, rope, sinusoidal
from lmxlab.core.rope_scaling import RopeScaling, inverse_frequencies


def rotary(**fields: Any) -> BlockConfig:
    return BlockConfig(attention="gqa", position="rope", d_model=32, n_heads=4, **fields)


def rotated(x: np.ndarray, theta: float, offset: int) -> np.ndarray:
    """2104.09864 equation 34 with the pairs (i, i + d/2): x (B, H, T, D)."""
    half = x.shape[-1] // 2
    angles = np.outer(offset + np.arange(x.shape[2]), theta ** -(np.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


@pytest.mark.parametrize("offset", [0, 5])
def test_rope_rotates_halves_by_position(offset: int) -> None:
    q, k = mx.random.normal((2, 4, 6, 8)), mx.random.normal((2, 2, 6, 8))
    q_rotated, k_rotated = RoPE(rotary(rope_theta=100.0))(q, k, offset=offset)
    np.testing.assert_allclose(np.array(q_rotated), rotated(np.array(q), 100.0, offset), atol=1e-5)
    np.testing.assert_allclose(np.array(k_rotated), rotated(np.array(k), 100.0, offset), atol=1e-5)


@pytest.mark.parametrize("scaling", [None, RopeScaling("yarn", 4.0, 16)])
def test_partial_rope_turns_the_first_channels_only(scaling: RopeScaling | None) -> None:
    config = rotary(partial_rotary_factor=0.5, rope_scaling=scaling)
    narrow = dataclasses.replace(config, head_dim=4, partial_rotary_factor=1.0)
    x = mx.random.normal((1, 2, 20, 8))
    turned, _ = RoPE(config)(x, x, offset=3)
    assert config.rotary_dim == 4 and mx.array_equal(turned[..., 4:], x[..., 4:])
    assert mx.allclose(turned[..., :4], RoPE(narrow)(x[..., :4], x[..., :4], offset=3)[0], atol=1e-6)


def test_partial_rope_needs_pairs() -> None:
    with pytest.raises(ValueError, match="partial_rotary_factor is 0.0"):
        rotary(partial_rotary_factor=0.0)
    with pytest.raises(ValueError, match="head_dim is 8; rope rotates 3 of it in pairs, so that must be even"):
        rotary(partial_rotary_factor=0.4)


def test_interleaved_rope_turns_neighbours_as_complex_numbers() -> None:
    x = mx.random.normal((2, 4, 6, 8))
    turned = RoPE(rotary(rope_theta=100.0, rope_interleaved=True)).rotate(x, 5, 11)
    pairs = np.array(x).reshape(2, 4, 6, 4, 2)
    angles = np.outer(5 + np.arange(6), 100.0 ** -(np.arange(4) / 4))
    expected = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
    np.testing.assert_allclose(np.array(turned[..., 0::2]), expected.real, atol=1e-5)
    np.testing.assert_allclose(np.array(turned[..., 1::2]), expected.imag, atol=1e-5)


def test_rope_scores_depend_only_on_distance() -> None:
    q, k = mx.random.normal((1, 1, 1, 8)), mx.random.normal((1, 1, 1, 8))
    turn = RoPE(rotary())
    near = (turn(q, q, offset=7)[0] * turn(k, k, offset=3)[0]).sum()
    far = (turn(q, q, offset=107)[0] * turn(k, k, offset=103)[0]).sum()
    assert abs(float(near) - float(far)) < 1e-4


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("scaling", "fields"),
    [
        (None, {"rope_type": "default"}),
        (RopeScaling("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (RopeScaling("dynamic", 4.0, 64), {"rope_type": "dynamic", "factor": 4.0}),
        (
            RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=1.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
            },
        ),
        (
            RopeScaling("llama3", 8.0, 32, low_freq_factor=1.0, high_freq_factor=4.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        ),
        (
            RopeScaling("yarn", 4.0, 16),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ),
        (
            RopeScaling("yarn", 8.0, 64, beta_fast=4.0, beta_slow=2.0, truncate=False, mscale=0.7, mscale_all_dim=0.3),
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 4.0,
                "beta_slow": 2.0,
                "truncate": False,
                "mscale": 0.7,
                "mscale_all_dim": 0.3,
            },
        ),
        (
            RopeScaling("yarn", 2.0, 64, attention_factor=1.5),
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "attention_factor": 1.5},
        ),
    ],
)
@pytest.mark.parametrize("seq_len", [16, 200])
def test_scaled_frequencies_equal_the_reference(
    scaling: RopeScaling | None, fields: dict[str, Any], seq_len: int
) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle for rope scaling is transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=4, max_position_embeddings=64, rope_parameters=fields | {"rope_theta": 5e3}
    )
    if scaling is None:
        expected, magnitude = 5e3 ** -(np.arange(0, 32, 2) / 32), 1.0
    else:
        tensor, magnitude = ROPE_INIT_FUNCTIONS[fields["rope_type"]](config, "cpu", seq_len=seq_len)
        expected = tensor.numpy()
    np.testing.assert_allclose(inverse_frequencies(32, 5e3, scaling, seq_len), expected, rtol=2e-6)
    assert (1.0 if scaling is None else scaling.magnitude) == pytest.approx(magnitude, abs=1e-12)


def test_yarn_scales_what_it_rotates() -> None:
    x = mx.random.normal((1, 4, 3, 8))
    scaling = RopeScaling("yarn", 4.0, 16)
    q, k = RoPE(rotary(rope_scaling=scaling))(x, x)
    assert scaling.magnitude == pytest.approx(0.1 * math.log(4.0) + 1)
    np.testing.assert_allclose(np.array(mx.linalg.norm(q, axis=-1) / mx.linalg.norm(x, axis=-1)), 1.1386294, rtol=1e-5)
    assert mx.array_equal(q, k)


def test_a_dynamic_layer_steps_beyond_its_context_as_one_pass_of_the_length_so_far() -> None:
    config = rotary(rope_scaling=RopeScaling("dynamic", 4.0, 8))
    layer, turn = GQA(config), RoPE(config)
    x = mx.random.normal((1, 20, 32))
    _, cache = layer(x[:, :5], mask="causal", rope=turn)
    for end in range(6, 21):
        step, cache = layer(x[:, end - 1 : end], cache=cache, rope=turn)
        full, _ = layer(x[:, :end], mask="causal", rope=turn)
        assert float(mx.abs(step[:, -1] - full[:, -1]).max()) < 1e-5


def test_sinusoids_are_those_of_vaswani() -> None:
    table = np.array(Sinusoidal(BlockConfig(d_model=6, n_heads=1))(mx.zeros((1, 50, 6))))[0]
    for position in (0, 1, 49):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoids_go_on_at_the_offset_and_beyond_the_configured_length() -> None:
    config = BlockConfig(d_model=8, n_heads=1, max_seq_len=4)
    x = mx.random.normal((2, 30, 8))
    full = Sinusoidal(config)(x)
    add = Sinusoidal(config)
    parts = [add(x[:, :3]), add(x[:, 3:17], offset=3), add(x[:, 17:], offset=17)]
    assert mx.array_equal(mx.concatenate(parts, axis=1), full)
    assert add(x.astype(mx.bfloat16)).dtype == mx.bfloat16
    assert add.parameters() == {}


def test_learned_positions_are_added_at_the_offset() -> None:
    add = Learned(BlockConfig(d_model=8, n_heads=1, max_seq_len=5))
    assert mx.array_equal(add(mx.zeros((1, 2, 8)), offset=3)[0], add.weight[3:5])


def test_learned_positions_end_with_their_table() -> None:
    add = Learned(BlockConfig(d_model=8, n_heads=1, max_seq_len=5))
    with pytest.raises(ValueError, match="6 tokens is longer than max_seq_len 5"):
        add(mx.zeros((1, 3, 8)), offset=3)


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8, 16])
def test_alibi_slopes_of_a_power_of_two(n_heads: int) -> None:
    bias = ALiBi(BlockConfig(d_model=16 * n_heads, n_heads=n_heads))(seq_len=2)
    expected = [2 ** (-8 * h / n_heads) for h in range(1, n_heads + 1)]
    np.testing.assert_allclose(np.array(-bias[0, :, 1, 0]), expected, rtol=1e-6)


def test_alibi_bias_is_slope_times_distance() -> None:
    bias = np.array(ALiBi(BlockConfig(d_model=32, n_heads=2))(seq_len=2, cache_len=3))
    assert bias.shape == (1, 2, 2, 5)
    distance = np.array([[3, 2, 1, 0, 1], [4, 3, 2, 1, 0]])
    np.testing.assert_allclose(bias[0], [-distance * 2.0**-4, -distance * 2.0**-8])


@pytest.mark.oracle
@pytest.mark.parametrize("n_heads", [1, 2, 3, 6, 8, 12, 20])
def test_alibi_equals_bloom_and_mpt(n_heads: int) -> None:
    torch = pytest.importorskip("torch", reason="the oracle for ALiBi is transformers, which needs torch")
    pytest.importorskip("transformers", reason="the oracle for ALiBi is transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    ours = np.array(ALiBi(BlockConfig(d_model=4 * n_heads, n_heads=n_heads))("causal", seq_len=9))[0]
    bloom = build_alibi_tensor(torch.ones(1, 9), n_heads, torch.float32).numpy()
    mpt = build_mpt_alibi_tensor(n_heads, 9).numpy()
    for query in range(9):  # both references are ours up to a constant per query, which softmax does not see
        seen = slice(0, query + 1)
        for theirs in (bloom[:, 0, seen], mpt[:, 0, seen]):
            np.testing.assert_allclose(ours[:, query, seen], theirs - theirs[:, -1:], atol=1e-6)


def test_alibi_joins_every_kind_of_mask() -> None:
    add = ALiBi(BlockConfig(d_model=32, n_heads=2))
    allowed = mx.array([[True, False, False], [True, True, False], [True, True, True]])
    additive = mx.where(allowed, 0.0, -1e9)
    bias = add(seq_len=3)
    boolean = add(allowed, seq_len=3)
    assert mx.array_equal(mx.where(allowed, boolean, 0), mx.where(allowed, bias, 0))
    assert mx.all(mx.isfinite(boolean)) and mx.all(mx.where(allowed, -math.inf, boolean) < -1e38)
    assert mx.array_equal(add("causal", seq_len=3), add(allowed, seq_len=3))
    assert mx.array_equal(add(mask=additive, seq_len=3), bias + additive)
    assert add(mask=additive[None, None], seq_len=3).shape == (1, 2, 3, 3)


def test_factories_and_the_identity() -> None:
    config = rotary()
    assert isinstance(rope(config), RoPE)
    assert isinstance(alibi(config), ALiBi)
    assert isinstance(sinusoidal(BlockConfig()), Sinusoidal)
    x = mx.random.normal((1, 2, 3))
    assert mx.array_equal(NoPosition(config)(x), x)
