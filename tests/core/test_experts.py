"""The stacked experts against one dense network each, forward and backward, in every way that rows are multiplied."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import kernels
from lmxlab.core.experts import Experts
from lmxlab.core.kernels.experts import Plan, plan_rows

D_MODEL, D_FF = 8, 12
# (tokens, experts, choices): few rows, unsorted; many; every expert; one; more experts than rows for most.
SIZES = [(3, 4, 2), (200, 8, 2), (90, 5, 5), (100, 4, 1), (40, 64, 2)]


@pytest.fixture(params=["blocks of rows", "row by row", "MLX's own"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernels.switch, "_exact", request.param == "MLX's own")
    monkeypatch.setattr(kernels.switch, "FEWEST_ELEMENTS", 0 if request.param == "blocks of rows" else 1 << 40)
    return str(request.param)


def routing(n_tokens: int, n_experts: int, top_k: int) -> tuple[mx.array, mx.array]:
    indices = mx.argsort(mx.random.normal((n_tokens, n_experts)), axis=-1)[:, :top_k]
    return indices, mx.random.uniform(0.2, 1, (n_tokens, top_k))


def densely(experts: Experts, x: mx.array, indices: mx.array, weights: mx.array, scale_input: bool) -> mx.array:
    """Every expert on every token, weighted by 0 where it was not chosen."""
    shares = mx.put_along_axis(mx.zeros((len(x), experts.n_experts)), indices, weights, axis=1)
    total = mx.zeros_like(x)
    for e in range(experts.n_experts):
        share = shares[:, e, None]
        z = x * share if scale_input else x
        up = z @ experts.up.weight[e].T
        if experts.activation == "relu2":
            hidden = mx.maximum(up, 0) ** 2
        else:
            gate = z @ experts.gate.weight[e].T
            hidden = (nn.silu(gate) if experts.activation == "silu" else nn.gelu_approx(gate)) * up
        out = hidden @ experts.down.weight[e].T
        total = total + (out if scale_input else out * share)
    return total


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
@pytest.mark.parametrize("scale_input", [False, True])
def test_outputs_and_gradients_are_those_of_dense_networks(
    form: str, size: tuple[int, int, int], activation: str, scale_input: bool
) -> None:
    n_tokens, n_experts, _ = size
    experts = Experts(n_experts, D_MODEL, D_FF, activation)
    x, target = mx.random.normal((2, n_tokens, D_MODEL))
    indices, weights = routing(*size)

    def gradients(function: Any) -> tuple[mx.array, Any]:
        def loss(parameters: Any, x: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
            experts.update(parameters)
            out = function(x, indices, weights, scale_input)
            return (out * target).sum(), out

        own = experts.parameters()
        (_, out), found = mx.value_and_grad(loss, argnums=(0, 1, 2))(own, x, weights)
        experts.update(own)
        return out, found

    out, ours = gradients(experts)
    expected_out, expected = gradients(lambda *inputs: densely(experts, *inputs))
    assert mx.allclose(out, expected_out, rtol=1e-4, atol=1e-4)
    for (name, array), (_, reference) in zip(tree_flatten(ours), tree_flatten(expected), strict=True):
        assert float(mx.abs(reference).max()) > 1e-3, name
        assert mx.allclose(array, reference, rtol=1e-4, atol=1e-4), name


def test_rows_of_a_block_all_belong_to_its_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.switch, "FEWEST_ELEMENTS", 0)
    indices, _ = routing(300, 4, 2)
    indices = mx.where(indices == 2, 1, indices)  # some tokens choose one expert twice, and one expert gets nothing
    plan = plan_rows(indices, 4, mx.zeros((300, D_MODEL)))
    if plan.block == 1:
        pytest.skip("blocks are for a CPU with a compiler")
    owner = mx.repeat(plan.experts, plan.block)
    assert (owner[plan.slots] == indices).all()
    assert len(set(plan.slots.reshape(-1).tolist())) == 600
    assert (plan.sources[plan.slots] == mx.arange(300)[:, None]).all()
    assert (plan.choices[plan.slots].reshape(-1) == mx.arange(600)).all()
    assert plan.spans is not None
    assert (plan.spans[:, 1] - plan.spans[:, 0]).tolist() == [int((indices == e).sum()) for e in range(4)]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("n_tokens", [2, 100])
def test_half_types_stay_what_they_are(n_tokens: int, dtype: mx.Dtype) -> None:
    experts = Experts(4, D_MODEL, D_FF, "silu")
    x = mx.random.normal((n_tokens, D_MODEL))
    indices, weights = routing(n_tokens, 4, 2)
    exact = experts(x, indices, weights)
    experts.set_dtype(dtype)
    out = experts(x.astype(dtype), indices, weights)
    assert out.dtype == dtype
    assert float(mx.abs(out - exact).max()) <= 0.02 * float(mx.abs(exact).max()) + 0.01


@pytest.mark.parametrize("n_tokens", [2, 100])
@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_quantised_experts_are_the_dequantised_ones(form: str, n_tokens: int, mode: str) -> None:
    width, hidden = 64, 64
    experts = Experts(4, width, hidden, "silu")
    x = mx.random.normal((n_tokens, width))
    indices, weights = routing(n_tokens, 4, 2)
    exact = Experts(4, width, hidden, "silu")
    for name in ("gate", "up", "down"):
        packed = mx.quantize(experts[name].weight, mode=mode)
        exact[name].weight = mx.dequantize(*packed, mode=mode, dtype=mx.float32)
    nn.quantize(experts, group_size=None, bits=None, mode=mode)
    assert not experts.trainable_parameters()["up"]
    assert mx.allclose(experts(x, indices, weights), exact(x, indices, weights), atol=2e-3)


def test_no_shape_depends_on_the_routing(form: str) -> None:
    experts = Experts(4, D_MODEL, D_FF, "silu")
    run = mx.compile(lambda x, indices, weights: experts(x, indices, weights))
    for low in (0, 3):  # all tokens to any expert; all to the last
        x = mx.random.normal((100, D_MODEL))
        indices, weights = mx.random.randint(low, 4, (100, 2)), mx.random.uniform(0, 1, (100, 2))
        assert mx.allclose(run(x, indices, weights), experts(x, indices, weights), atol=1e-5)


def test_a_plan_of_few_rows_is_not_sorted() -> None:
    indices, _ = routing(3, 4, 2)
    plan = plan_rows(indices, 4, mx.zeros((3, D_MODEL)))
    assert isinstance(plan, Plan) and plan.spans is None and plan.experts.tolist() == indices.reshape(-1).tolist()
