"""What is computed again has the same values and gradients, and leaves nothing behind."""

import mlx.core as mx
import mlx.nn as nn

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
