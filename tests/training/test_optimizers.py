"""Optimizers against torch and lion-pytorch; their contract is in test_optimizer_contract."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import pytest
from mlx.utils import tree_flatten, tree_map
from optimizer_runs import SHAPES, constant, gap, problem, run_ours, run_torch
from tiny_lm import tiny_model

from lmxlab.errors import UserError
from lmxlab.training import create_optimizer
from lmxlab.training.decay import decays
from lmxlab.training.optimizers import create_mup_optimizer, is_hidden_matrix, learning_rates


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion"])
def test_ten_steps_are_the_reference_implementation_s(name: str, scale: float) -> None:
    torch = pytest.importorskip("torch", reason="the oracle for optimizers is torch: pip install lmxlab[oracle]")
    if name == "lion":
        lion_pytorch = pytest.importorskip("lion_pytorch", reason="the oracle for Lion is lion-pytorch")
    build = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
        "lion": lambda p: lion_pytorch.Lion(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1),
    }[name]
    start, gradients = problem(SHAPES, scale)
    difference = gap(run_ours(create_optimizer(constant(name)), start, gradients), run_torch(build, start, gradients))
    print(f"{name}: {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lion"])
def test_vectors_follow_the_reference_without_decay(name: str) -> None:
    torch = pytest.importorskip("torch", reason="the oracle for optimizers is torch: pip install lmxlab[oracle]")
    if name == "lion":
        lion_pytorch = pytest.importorskip("lion_pytorch", reason="the oracle for Lion is lion-pytorch")
    build = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.0),
        "lion": lambda p: lion_pytorch.Lion(p, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0),
    }[name]
    start, gradients = problem({"norm": (7,), "bias": (3,)})
    assert gap(run_ours(create_optimizer(constant(name)), start, gradients), run_torch(build, start, gradients)) <= 1e-5


def test_adamw_s_first_step_is_the_sign_of_the_gradient() -> None:
    """With bias correction |update| is lr whatever the gradient; without it, 0.1 / sqrt(0.001) = 3.2 times that."""
    optimizer = create_optimizer(constant("adamw"))
    updated = optimizer.apply_gradients({"bias": mx.array([1e-3, -5.0])}, {"bias": mx.zeros(2)})["bias"]
    assert mx.allclose(updated, mx.array([-1e-2, 1e-2]), rtol=2e-5)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    optimizer: Any = create_optimizer(constant("muon"))
    optimizer.init(tiny_model().trainable_parameters())
    muon, adamw = (dict(tree_flatten(part.state)) for part in optimizer.optimizers)
    assert {path.removesuffix(".v") for path in muon if path.endswith(".v")} == {
        f"blocks.{i}.{side}.weight" for i in range(2) for side in ("up", "down")
    }
    assert "embed.weight.m" in adamw and "head.weight.m" in adamw and "blocks.0.norm.weight.m" in adamw


@pytest.mark.parametrize(
    ("path", "shape", "decayed", "hidden"),
    [
        ("blocks.0.attention.q_proj.weight", (4, 4), True, True),
        ("blocks.0.ffn.experts.up", (3, 4, 4), True, True),
        ("blocks.0.attention.conv.weight", (4, 3, 1), True, False),
        ("blocks.0.attn_norm.weight", (4,), False, False),
        ("blocks.0.attention.q_proj.bias", (4,), False, False),
        ("blocks.0.ffn.experts.bias", (3, 4), False, False),
        ("blocks.0.attention.A_log", (4,), False, False),
        ("blocks.0.attention.dt_bias", (4,), False, False),
        ("blocks.0.attention.D", (4,), False, False),
        ("embed.weight", (9, 4), False, False),
        ("embed_position.weight", (9, 4), False, False),
        ("head.weight", (9, 4), True, False),
    ],
)
def test_kinds_of_parameters(path: str, shape: tuple[int, ...], decayed: bool, hidden: bool) -> None:
    parameter = mx.zeros(shape)
    assert (decays(path, parameter), is_hidden_matrix(path, parameter)) == (decayed, hidden)


def test_mup_divides_the_rate_of_hidden_matrices_only() -> None:
    optimizer: Any = create_mup_optimizer(constant("adamw"), width_mult=4.0)
    assert isinstance(optimizer, optim.MultiOptimizer)
    model = tiny_model()
    before = dict(tree_flatten(tree_map(mx.array, model.parameters())))
    optimizer.update(model, tree_map(mx.ones_like, model.trainable_parameters()))
    for path, after in tree_flatten(model.parameters()):
        hidden = path.endswith(("up.weight", "down.weight"))
        rate = 1e-2 / 4 if hidden else 1e-2
        decay = 0.1 * 4 if hidden else 0.1 if path == "head.weight" else 0.0
        assert mx.allclose(after, before[path] * (1 - rate * decay) - rate, rtol=1e-4, atol=1e-7), path
    rates = {name: rate.item() for name, rate in learning_rates(optimizer).items()}
    assert rates == pytest.approx({"learning_rate": 1e-2, "learning_rate/base": 1e-2, "learning_rate/hidden": 2.5e-3})


def test_mup_refuses_optimizers_whose_rules_it_does_not_know() -> None:
    with pytest.raises(UserError, match="muP's rates are for adamw and lion, not 'sgd'"):
        create_mup_optimizer(constant("sgd"), 2.0)


def test_optimizers_are_of_mlx_s_classes() -> None:
    kinds = {"adamw": optim.AdamW, "lion": optim.Lion, "adafactor": optim.Adafactor, "sgd": optim.SGD}
    for name, kind in {**kinds, "muon": optim.MultiOptimizer}.items():
        assert isinstance(create_optimizer(constant(name)), kind)


def test_a_frozen_parameter_has_no_state_and_does_not_move() -> None:
    model = tiny_model()
    model.blocks[0].up.freeze()
    before = mx.array(model.blocks[0].up.weight)
    optimizer = create_optimizer(constant("adamw"))
    optimizer.init(model.trainable_parameters())
    optimizer.update(model, tree_map(mx.ones_like, model.trainable_parameters()))
    assert not [path for path, _ in tree_flatten(optimizer.state) if path.startswith("blocks.0.up")]
    assert mx.array_equal(model.blocks[0].up.weight, before)
    assert isinstance(model.blocks[0].up, nn.Linear)
