import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import BlockConfig
from lmxlab.core.ffn import FFNBase, ffn_registry
from lmxlab.core.moe import LatentMoEFFN, MoEFFN, SharedExpertMoEFFN
from lmxlab.errors import UserError

CONFIG = BlockConfig(ffn="moe", d_model=8, n_heads=2, d_ff=12, n_experts=4, bias=False)
SHARED = dataclasses.replace(CONFIG, ffn="shared_moe")
LATENT = dataclasses.replace(CONFIG, ffn="latent_moe", moe_latent_size=6)


def matrix(module: object, expert: int | None = None) -> np.ndarray:
    weight = np.array(module.weight, np.float64)  # type: ignore[attr-defined]
    return weight if expert is None else weight[expert]


def network(ffn: object, x: np.ndarray, expert: int | None = None) -> np.ndarray:
    """down(silu(gate x) * up x) or down(relu(up x)^2) in float64."""
    up = x @ matrix(ffn.up, expert).T  # type: ignore[attr-defined]
    if "gate" in ffn:  # type: ignore[operator]
        gate = x @ matrix(ffn.gate, expert).T  # type: ignore[attr-defined]
        up = gate / (1 + np.exp(-gate)) * up
    else:
        up = np.maximum(up, 0) ** 2
    return up @ matrix(ffn.down, expert).T  # type: ignore[attr-defined]


def routed(ffn: MoEFFN, x: mx.array, z: np.ndarray) -> np.ndarray:
    """The weighted sum of the experts that the router chooses for x, applied to z."""
    indices, weights = (np.array(a) for a in ffn.router(x))
    return np.stack(
        [
            sum(w * network(ffn.experts, z[n], int(e)) for e, w in zip(indices[n], weights[n], strict=True))
            for n in range(len(z))
        ]
    )


@pytest.mark.parametrize("activation", [None, "relu2"])
def test_a_mixture_is_the_weighted_sum_of_its_experts(activation: str | None) -> None:
    ffn, x = MoEFFN(dataclasses.replace(CONFIG, activation=activation)), mx.random.normal((2, 5, 8))
    flat = x.reshape(10, 8)
    expected = routed(ffn, flat, np.array(flat, np.float64)).reshape(2, 5, 8)
    np.testing.assert_allclose(np.array(ffn(x)), expected, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_shared_experts_see_every_token(gated: bool) -> None:
    config = dataclasses.replace(SHARED, n_shared_experts=2, moe_d_ff=5, shared_expert_gate=gated)
    ffn, x = SharedExpertMoEFFN(config), mx.random.normal((10, 8))
    values = np.array(x, np.float64)
    shared = network(ffn.shared, values)
    if gated:
        shared = shared / (1 + np.exp(-values @ matrix(ffn.shared_gate).T))
    np.testing.assert_allclose(np.array(ffn(x)), shared + routed(ffn, x, values), atol=1e-5)
    assert ffn.shared.up.weight.shape == (10, 8) and ffn.experts.up.weight.shape == (4, 5, 8)


def test_latent_experts_work_between_latents() -> None:
    ffn, x = LatentMoEFFN(LATENT), mx.random.normal((10, 8))
    values = np.array(x, np.float64)
    latent = routed(ffn, x, values @ matrix(ffn.compress).T)
    np.testing.assert_allclose(np.array(ffn(x)), network(ffn.shared, values) + latent @ matrix(ffn.down).T, atol=1e-5)
    assert ffn.experts.up.weight.shape == (4, 12, 6) and "gate" not in ffn.experts


def test_arguments_override_the_config() -> None:
    plain = BlockConfig(d_model=8, n_heads=2, d_ff=12)
    assert MoEFFN(plain).router.weight.shape == (8, 8) and MoEFFN(plain).router.top_k == 2
    ffn = SharedExpertMoEFFN(SHARED, n_experts=6, top_k=3, n_shared=2)
    assert ffn.router.weight.shape == (6, 8) and ffn.router.top_k == 3 and ffn.shared.up.weight.shape == (24, 8)
    with pytest.raises(UserError, match="top_k_experts is 9"):
        MoEFFN(plain, top_k=9)


def test_what_a_mixture_would_ignore_or_lack_is_refused() -> None:
    with pytest.raises(UserError, match="moe_latent_size"):
        LatentMoEFFN(CONFIG)
    for field in ({"n_shared_experts": 1}, {"shared_expert_gate": True}, {"moe_latent_size": 4}):
        with pytest.raises(UserError, match="would be ignored"):
            dataclasses.replace(CONFIG, **field)
    with pytest.raises(UserError, match="router_scales_input"):
        BlockConfig(router_scales_input=True)
    with pytest.raises(UserError, match="activation"):
        dataclasses.replace(CONFIG, activation="gelu")


@pytest.mark.parametrize("config", [CONFIG, SHARED, LATENT], ids=lambda config: config.ffn)
def test_flops_are_those_of_the_matrices_that_a_token_meets(config: BlockConfig) -> None:
    ffn: FFNBase = ffn_registry.get(config.ffn)(dataclasses.replace(config, moe_d_ff=5))
    met = 0
    for name, array in tree_flatten(ffn.trainable_parameters()):
        met += array.size // config.n_experts * config.top_k_experts if "experts" in name else array.size
    assert type(ffn).flops(ffn.config) == 2 * met
