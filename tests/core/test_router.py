import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import BlockConfig
from lmxlab.core.router import Router, balance, counting, expert_load
from lmxlab.errors import UserError

D_MODEL, N_EXPERTS = 6, 8
CONFIG = BlockConfig(ffn="moe", d_model=D_MODEL, n_heads=2, n_experts=N_EXPERTS)


def router(
    top_k: int = 2, scores: str = "softmax", normalized: bool = True, balanced: bool = False, **fields: Any
) -> Router:
    made = Router(dataclasses.replace(CONFIG, **fields), N_EXPERTS, top_k, scores, normalized, balanced)
    made.weight = mx.random.normal(made.weight.shape)
    if balanced:
        made.balance_bias = mx.random.normal((N_EXPERTS,))
    return made


def by_expert(indices: mx.array, weights: mx.array) -> np.ndarray:
    """(N, E) weights, NaN where an expert was not chosen."""
    table = np.full((len(indices), N_EXPERTS), np.nan)
    np.put_along_axis(table, np.array(indices).astype(int), np.array(weights), axis=1)
    return table


def logits(made: Router, x: mx.array) -> np.ndarray:
    return np.array(x, np.float64) @ np.array(made.weight, np.float64).T


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_normalised_softmax_is_the_softmax_of_the_selected_logits() -> None:
    made, x = router(3), mx.random.normal((20, D_MODEL))
    z = logits(made, x)
    chosen = z >= np.sort(z, axis=-1)[:, -3, None]
    expected = softmax(np.where(chosen, z, -np.inf))
    np.testing.assert_allclose(by_expert(*made(x)), np.where(chosen, expected, np.nan), atol=1e-5)


def test_plain_softmax_weights_are_those_of_all_experts() -> None:
    made, x = router(3, normalized=False, moe_routed_scaling_factor=2.5), mx.random.normal((20, D_MODEL))
    table = by_expert(*made(x))
    expected = 2.5 * softmax(logits(made, x))
    np.testing.assert_allclose(table, np.where(np.isnan(table), np.nan, expected), atol=1e-5)


def test_the_bias_decides_who_is_chosen_and_no_weight() -> None:
    made, x = router(2, "sigmoid", balanced=True), mx.random.normal((50, D_MODEL))
    scores = 1 / (1 + np.exp(-logits(made, x)))
    biased = scores + np.array(made.balance_bias)
    chosen = biased >= np.sort(biased, axis=-1)[:, -2, None]
    assert (chosen != (scores >= np.sort(scores, axis=-1)[:, -2, None])).any()
    kept = np.where(chosen, scores, 0)
    expected = np.where(chosen, kept / kept.sum(axis=-1, keepdims=True), np.nan)
    np.testing.assert_allclose(by_expert(*made(x)), expected, atol=1e-5)


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_the_choice_stays_within_the_best_groups(scores: str) -> None:
    made = router(3, scores, moe_n_groups=4, moe_topk_groups=2)
    x = mx.random.normal((50, D_MODEL))
    z = logits(made, x)
    s = 1 / (1 + np.exp(-z)) if scores == "sigmoid" else softmax(z)
    groups = s.reshape(50, 4, 2)
    value = groups.sum(axis=-1) if scores == "sigmoid" else groups.max(axis=-1)
    allowed = np.repeat(value >= np.sort(value, axis=-1)[:, -2, None], 2, axis=1)
    within = np.where(allowed, s, -np.inf)
    chosen = within >= np.sort(within, axis=-1)[:, -3, None]
    assert (chosen != (s >= np.sort(s, axis=-1)[:, -3, None])).any()
    np.testing.assert_array_equal(~np.isnan(by_expert(*made(x))), chosen)


def test_every_expert_can_be_chosen() -> None:
    made = router(N_EXPERTS)
    indices, weights = made(mx.random.normal((5, D_MODEL)))
    assert np.sort(np.array(indices)).tolist() == [list(range(N_EXPERTS))] * 5
    np.testing.assert_allclose(np.array(weights).sum(axis=-1), 1, atol=1e-6)


def test_the_gradient_comes_through_the_weights_alone() -> None:
    made, x = router(2, "sigmoid", balanced=True), mx.random.normal((9, D_MODEL))
    target = mx.random.normal((9, 2))

    def loss(weight: mx.array, bias: mx.array) -> mx.array:
        made.weight, made.balance_bias = weight, bias
        return (made(x)[1] * target).sum()

    weight, bias = made.weight, made.balance_bias
    indices, _ = made(x)
    by_weight, by_bias = mx.grad(loss, argnums=(0, 1))(weight, bias)
    assert (by_bias == 0).all()

    def chosen(weight: mx.array) -> mx.array:
        picked = mx.take_along_axis(mx.sigmoid(x @ weight.T), indices, axis=-1)
        return (picked / picked.sum(axis=-1, keepdims=True) * target).sum()

    assert mx.allclose(by_weight, mx.grad(chosen)(weight), atol=1e-6)


def test_the_bias_moves_against_the_load_once_per_step() -> None:
    made = router(1, "sigmoid", balanced=True, router_balance_step=0.25)
    made.balance_bias = mx.zeros((N_EXPERTS,))
    made.train()
    indices = mx.concatenate([made(mx.random.normal((20, D_MODEL)))[0] for _ in range(2)])  # two micro-batches
    assert (made.balance_bias == 0).all()
    counts = np.bincount(np.array(indices).reshape(-1), minlength=N_EXPERTS)
    assert counts.max() > counts.mean() > counts.min()
    balance(made)
    assert made.balance_bias.tolist() == (0.25 * np.sign(5 - counts)).tolist()
    np.testing.assert_allclose(np.array(made.load), counts / 40, atol=1e-6)
    before = made.balance_bias
    balance(made)  # no load, no lack
    assert (made.balance_bias == before).all()


def test_balancing_evens_the_load() -> None:
    made = router(2, "sigmoid", balanced=True, router_balance_step=0.02)
    made.balance_bias = mx.zeros((N_EXPERTS,))
    x = mx.random.normal((400, D_MODEL))
    made.weight[:, 0], x[:, 0] = mx.linspace(-3, 3, N_EXPERTS), 1  # every token likes the same experts
    spreads = []
    for _ in range(120):
        made(x)
        balance(made)
        spreads.append(float(made.load.max()))
    assert spreads[0] > 0.25 and spreads[-1] < 0.16  # even: 0.125


def test_evaluation_counts_nothing() -> None:
    made = router(balanced=True)
    made.eval()
    bias = made.balance_bias
    made(mx.random.normal((20, D_MODEL)))
    balance(made)
    assert (made.balance_bias == bias).all()
    with counting(made):
        made(mx.random.normal((20, D_MODEL)))
    assert not made.training
    assert float(sum(expert_load(made).values()).sum()) == pytest.approx(1)
    balance(made)
    assert (made.balance_bias == bias).all()


def test_the_bias_is_saved_but_never_trained() -> None:
    made = router(balanced=True)
    for thaw in (lambda: None, made.unfreeze, lambda: made.unfreeze(keys=["balance_bias"])):
        thaw()
        assert [name for name, _ in tree_flatten(made.trainable_parameters())] == ["weight"]
    assert {name for name, _ in tree_flatten(made.parameters())} == {"weight", "balance_bias"}


def test_scores_are_computed_in_float32() -> None:
    made, x = router(2), mx.random.normal((30, D_MODEL)).astype(mx.bfloat16)
    made.set_dtype(mx.bfloat16)
    exact = router(2)
    exact.weight = made.weight.astype(mx.float32)
    half, whole = made(x), exact(x.astype(mx.float32))
    assert half[1].dtype == mx.float32
    np.testing.assert_allclose(by_expert(*half), by_expert(*whole), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k_experts": 9}, "top_k_experts is 9; it must be between 1 and the 8 experts in reach"),
        ({"top_k_experts": 5, "moe_n_groups": 4, "moe_topk_groups": 2}, "top_k_experts is 5.* 4 experts in reach"),
        ({"moe_n_groups": 3}, "n_experts 8 in moe_n_groups 3"),
        ({"moe_n_groups": 2, "moe_topk_groups": 3}, "moe_topk_groups 3"),
        ({"moe_n_groups": 8, "moe_topk_groups": 2}, "as many as experts"),
        ({"router_scores": "tanh"}, "Unknown router_scores 'tanh'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **fields)
