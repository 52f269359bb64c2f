"""What is computed again has the same values and gradients, and leaves nothing behind."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core.dropout import Dropout
from lmxlab.core.recompute import recompute


def outputs(module: nn.Linear, x: mx.array) -> mx.array:
    return recompute(module, lambda x: module(mx.sin(x)), x)


def test_values_and_gradients_are_those_of_the_plain_call() -> None:
    module, x = nn.Linear(4, 3), mx.random.normal((5, 4))
    assert mx.allclose(outputs(module, x), module(mx.sin(x)), atol=1e-6)
    ours = nn.value_and_grad(module, lambda x: outputs(module, x).square().sum())(x)
    plain = nn.value_and_grad(module, lambda x: module(mx.sin(x)).square().sum())(x)
    for name in ("weight", "bias"):
        assert mx.allclose(ours[1][name], plain[1][name], atol=1e-5)


def test_the_module_keeps_its_own_arrays() -> None:
    module, x = nn.Linear(4, 3), mx.random.normal((5, 4))
    mx.eval(module.parameters())
    weight = module.weight
    outputs(module, x)
    assert module.weight is weight
    mx.eval(mx.compile(mx.grad(lambda x: outputs(module, x).sum()))(x))
    assert module.weight is weight


def test_a_frozen_module_passes_gradients_on() -> None:
    module, x = nn.Linear(4, 3), mx.random.normal((5, 4))
    module.freeze()
    gradient = mx.grad(lambda x: outputs(module, x).sum())(x)
    assert mx.allclose(gradient, mx.grad(lambda x: module(mx.sin(x)).sum())(x), atol=1e-6)


def test_dropout_draws_the_same_in_both_passes() -> None:
    module, x = nn.Sequential(Dropout(0.5), nn.Linear(8, 8)), mx.random.normal((4, 8))
    loss = nn.value_and_grad(module, lambda x: recompute(module, lambda x: module(mx.sin(x)), x).sum())
    out = recompute(module, module, x)
    assert not mx.array_equal(out, recompute(module, module, x))
    # d/dW of the sum of W x is x itself: what is dropped has no gradient, and what is kept has the scaled input's.
    seen: list[mx.array] = []
    module.layers[0] = Spy(module.layers[0], seen)
    _, gradient = loss(x)
    mx.eval(gradient)
    assert len(seen) == 2
    assert mx.allclose(gradient["layers"][1]["weight"][0], seen[0].sum(axis=0), atol=1e-5)


def test_quantised_parameters_need_no_gradient() -> None:
    module, x = nn.QuantizedLinear(64, 8, bias=False), mx.random.normal((4, 64))
    gradient = mx.grad(lambda x: recompute(module, lambda x: module(mx.sin(x)), x).sum())(x)
    assert mx.allclose(gradient, mx.grad(lambda x: module(mx.sin(x)).sum())(x), atol=1e-5)


class Spy(nn.Module):
    """Remembers what dropout lets through."""

    def __init__(self, inner: Dropout, seen: list[mx.array]):
        super().__init__()
        self.inner = inner
        self._seen = (seen,)

    def __call__(self, x: mx.array) -> mx.array:
        out = self.inner(x)
        self._seen[0].append(mx.stop_gradient(out))
        return out
