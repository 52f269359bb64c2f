"""Latent attention against its formula in float64, and its two forms against each other."""

import dataclasses
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxlab.core.config import BlockConfig
from lmxlab.core.mla import MLA
from lmxlab.core.rope_scaling import RopeScaling, inverse_frequencies
from lmxlab.errors import UserError

CONFIG = BlockConfig(
    attention="mla",
    norm="rms_norm",
    position="none",
    d_model=24,
    n_heads=3,
    bias=False,
    kv_lora_rank=10,
    q_lora_rank=14,
    rope_dim=4,
    qk_nope_head_dim=6,
    v_head_dim=5,
)
VARIANTS = {
    "compressed queries": CONFIG,
    "plain queries": dataclasses.replace(CONFIG, q_lora_rank=None),
    "nothing rotates": dataclasses.replace(CONFIG, rope_dim=0),
    "biases": dataclasses.replace(CONFIG, attention_bias=True),
    "mup": dataclasses.replace(CONFIG, mup=True),
    "yarn": dataclasses.replace(
        CONFIG, rope_scaling=RopeScaling("yarn", 4.0, 8, mscale=0.7, mscale_all_dim=0.9, beta_fast=4.0)
    ),
    "derived sizes": dataclasses.replace(CONFIG, rope_dim=None, qk_nope_head_dim=None, v_head_dim=None),
}


def layer(config: BlockConfig) -> MLA:
    made = MLA(config)
    made.apply(lambda array: array + 0.3 * mx.random.normal(array.shape))
    return made


def formula(made: MLA, x: np.ndarray) -> np.ndarray:
    """Causal latent attention of one sequence, (T, d_model), head by head."""
    weights = {name: np.array(module.weight, np.float64) for name, module in made.named_modules() if "weight" in module}
    config, length = made.config, len(x)

    def linear(name: str, z: np.ndarray) -> np.ndarray:
        out = z @ weights[name].T
        return out + np.array(made[name].bias, np.float64) if "bias" in made[name] else out

    def norm(name: str, z: np.ndarray) -> np.ndarray:
        return z / np.sqrt((z**2).mean(axis=-1, keepdims=True) + 1e-6) * weights[name]

    def rotate(z: np.ndarray) -> np.ndarray:
        if not made.rope_dim:
            return z
        scaling = config.rope_scaling
        turns = np.outer(np.arange(length), inverse_frequencies(made.rope_dim, config.rope_theta, scaling))
        pairs = (z[:, ::2] + 1j * z[:, 1::2]) * np.exp(1j * turns) * (scaling.magnitude if scaling else 1)
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(z.shape)

    q = linear("q_up", norm("q_norm", linear("q_down", x))) if "q_down" in made else linear("q_proj", x)
    down = linear("kv_down", x)
    latent, shared = norm("kv_norm", down[:, : made.rank]), rotate(down[:, made.rank :])
    channels = made.nope + made.rope_dim
    scale = 1 / channels if config.mup else channels**-0.5
    if config.rope_scaling:
        scale *= (0.1 * 0.9 * math.log(4.0) + 1) ** 2
    heads = []
    for h in range(config.n_heads):
        own = q[:, h * channels : (h + 1) * channels]
        both = latent @ weights["kv_up"].reshape(config.n_heads, -1, made.rank)[h].T
        key, value = np.concatenate([both[:, : made.nope], shared], axis=1), both[:, made.nope :]
        scores = scale * np.concatenate([own[:, : made.nope], rotate(own[:, made.nope :])], axis=1) @ key.T
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(shares / shares.sum(axis=-1, keepdims=True) @ value)
    return linear("o_proj", np.concatenate(heads, axis=1))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_latent_attention_is_its_formula(config: BlockConfig) -> None:
    made, x = layer(config), mx.random.normal((2, 12, 24))
    out, _ = made(x, mask="causal")
    for row in range(2):
        np.testing.assert_allclose(np.array(out[row]), formula(made, np.array(x[row], np.float64)), atol=2e-5)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("most_absorbed", [0, 2, math.inf])
def test_steps_from_latents_equal_the_full_pass(config: BlockConfig, chunk: int, most_absorbed: float) -> None:
    made, x = layer(config), mx.random.normal((2, 12, 24))
    made.most_absorbed = most_absorbed  # both forms, and from one to the other
    full, _ = made(x, mask="causal")
    out, cache = made(x[:, :6], mask="causal")
    parts = [out]
    for start in range(6, 12, chunk):
        out, cache = made(x[:, start : start + chunk], mask="causal", cache=cache)
        parts.append(out)
    np.testing.assert_allclose(np.array(mx.concatenate(parts, axis=1)), np.array(full), atol=1e-5)


def test_the_cache_holds_the_latent_and_the_shared_key_alone() -> None:
    made = layer(CONFIG)
    _, cache = made(mx.random.normal((2, 7, 24)), mask="causal")
    assert cache.keys.shape == (2, 1, 7, 10) and cache.values.shape == (2, 1, 7, 4)
    assert MLA.cached_numbers(CONFIG) == (14, 0)


@pytest.mark.parametrize("mask", ["boolean", "additive"])
def test_masks_mean_the_same_to_both_forms(mask: str) -> None:
    made, x = layer(CONFIG), mx.random.normal((1, 9, 24))
    allowed = (mx.random.uniform(shape=(9, 9)) < 0.6) | mx.eye(9).astype(mx.bool_)
    given = allowed if mask == "boolean" else mx.where(allowed, 0.0, -mx.inf)
    full, _ = made(x, mask=given)
    assert not mx.allclose(full, made(x, mask="causal")[0], atol=1e-3)
    _, cache = made(x[:, :6], mask=given[:6, :6])
    late, _ = made(x[:, 6:], mask=given[6:], cache=cache)
    # The first six saw no later token here and some in the full pass; what they keep is the same.
    np.testing.assert_allclose(np.array(late), np.array(full[:, 6:]), atol=1e-5)


def test_quantised_weights_are_absorbed_as_what_they_stand_for() -> None:
    made = layer(dataclasses.replace(CONFIG, kv_lora_rank=64))
    nn.quantize(made, group_size=32, bits=8, class_predicate=lambda path, _: path == "kv_up")
    x = mx.random.normal((1, 8, 24))
    full, _ = made(x, mask="causal")
    _, cache = made(x[:, :7], mask="causal")
    last, _ = made(x[:, 7:], cache=cache)
    np.testing.assert_allclose(np.array(last), np.array(full[:, 7:]), atol=1e-4)


def test_decoding_reads_latents_and_computes_no_keys() -> None:
    """The step's largest array goes by the latent's channels, not by heads times channels of keys."""
    config = dataclasses.replace(CONFIG, n_heads=16, head_dim=8, qk_nope_head_dim=32, v_head_dim=32)
    made = layer(config)
    _, cache = made(mx.random.normal((1, 200, 24)), mask="causal")
    sizes: list[int] = []

    def note(event: dict) -> None:
        if event["type"] == "primitive":
            sizes.extend(math.prod(shape) for _, shape, _ in event["outputs"])

    mx.export_function(note, lambda x: made(x, cache=cache)[0], mx.random.normal((1, 1, 24)))
    assert max(sizes) < 200 * 16 * 32


def test_what_is_missing_or_does_not_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="kv_lora_rank"):
        MLA(dataclasses.replace(CONFIG, kv_lora_rank=None))
    with pytest.raises(UserError, match="rope_dim is 3"):
        dataclasses.replace(CONFIG, rope_dim=3)
    with pytest.raises(UserError, match="v_head_dim 5 would be ignored"):
        BlockConfig(v_head_dim=5)
    with pytest.raises(UserError, match="dynamic"):
        MLA(dataclasses.replace(CONFIG, rope_scaling=RopeScaling("dynamic", 2.0, 8)))
