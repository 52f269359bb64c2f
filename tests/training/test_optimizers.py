"""Optimizers against torch and lion-pytorch, and the contract that every one of them keeps."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from tiny_lm import tiny_model

from lmxlab.errors import UserError
from lmxlab.training import TrainConfig, create_optimizer
from lmxlab.training.config import OPTIMIZERS
from lmxlab.training.decay import decays
from lmxlab.training.muon import Muon, orthogonalise
from lmxlab.training.optimizers import create_mup_optimizer, is_hidden_matrix, learning_rates

SHAPES = {"matrix": (12, 8), "wide": (5, 16), "square": (8, 8)}
STEPS = 10


def run_ours(optimizer: optim.Optimizer, start: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]]) -> Any:
    parameters = {name: mx.array(value) for name, value in start.items()}
    step = mx.compile(optimizer.apply_gradients, inputs=optimizer.state, outputs=optimizer.state)
    optimizer.init(parameters)
    for gradient in gradients:
        parameters = step({name: mx.array(value) for name, value in gradient.items()}, parameters)
        mx.eval(parameters, optimizer.state)
    return {name: np.array(value) for name, value in parameters.items()}


def run_torch(build: Callable[..., Any], start: dict[str, np.ndarray], gradients: list[dict[str, np.ndarray]]) -> Any:
    torch = pytest.importorskip("torch", reason="the oracle for optimizers is torch: pip install lmxlab[oracle]")
    parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = build(list(parameters.values()))
    for gradient in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradient[name])
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def problem(shapes: dict[str, tuple[int, ...]], scale: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    draw = lambda: {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}  # noqa: E731
    return draw(), [{name: scale * g for name, g in draw().items()} for _ in range(STEPS)]


def gap(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def constant(name: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        optimizer=name, learning_rate=1e-2, weight_decay=0.1, warmup_steps=0, lr_schedule="constant", **changes
    )


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


@pytest.mark.oracle
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_is_torch_s_when_torch_orthogonalises_in_float32(adjust: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the oracle for Muon is torch: pip install lmxlab[oracle]")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch rounds the momentum to bfloat16 first
    build = functools.partial(torch.optim.Muon, lr=1e-2, weight_decay=0.1, adjust_lr_fn=adjust)
    start, gradients = problem(SHAPES)
    ours = run_ours(create_optimizer(constant("muon", muon_lr_adjust=adjust)), start, gradients)
    difference = gap(ours, run_torch(build, start, gradients))
    print(f"muon {adjust}: {difference:.1e}")
    assert difference <= 1e-5


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in [(24, 16), (16, 24), (3, 16, 16)]:
        values = np.linalg.svd(np.array(orthogonalise(mx.random.normal(shape), steps=10)), compute_uv=False)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_stacked_experts_are_orthogonalised_one_by_one() -> None:
    stack = mx.random.normal((3, 6, 4))
    together = orthogonalise(stack)
    for i in range(3):
        assert mx.allclose(together[i], orthogonalise(stack[i]), atol=1e-6)


def test_muon_s_decay_is_not_orthogonalised() -> None:
    """With no gradient the momentum is 0 and the weights shrink by exactly 1 - lr decay."""
    optimizer = Muon(0.1, decay=0.5)
    weight = mx.random.normal((4, 4))
    updated = optimizer.apply_gradients({"w": mx.zeros((4, 4))}, {"w": weight})["w"]
    assert mx.allclose(updated, weight * 0.95, rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_shrinks_matrices_only(name: str) -> None:
    """With zero gradients nothing but decay moves a weight."""
    model = tiny_model()
    before = dict(tree_flatten(tree_map(mx.array, model.parameters())))
    optimizer = create_optimizer(constant(name))
    optimizer.update(model, tree_map(mx.zeros_like, model.trainable_parameters()))
    for path, after in tree_flatten(model.parameters()):
        factor = 1 - 1e-2 * 0.1 if path.endswith("weight") and ("up" in path or "down" in path or "head" in path) else 1
        assert mx.allclose(after, before[path] * factor, rtol=1e-6, atol=0), path


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_optimizer_keeps_dtypes_counts_steps_and_follows_the_schedule(name: str, dtype: mx.Dtype) -> None:
    model = tiny_model()
    model.set_dtype(dtype)
    config = TrainConfig(optimizer=name, learning_rate=1e-2, warmup_steps=2, max_steps=4, lr_schedule="linear")
    optimizer = create_optimizer(config)
    expected = [1e-7, (1e-7 + 1e-2) / 2, 1e-2, 0.5e-2]
    for rate in expected:
        before = tree_map(mx.array, model.parameters())
        optimizer.update(model, tree_map(lambda p: mx.full(p.shape, 0.01, p.dtype), model.trainable_parameters()))
        for group in learning_rates(optimizer).values():
            assert group.item() == pytest.approx(rate, rel=1e-3)
        for (path, new), (_, old) in zip(tree_flatten(model.parameters()), tree_flatten(before), strict=True):
            assert new.dtype == dtype, path
            assert mx.isfinite(new).all(), path
            moved = mx.abs(new - old).max().item()
            if dtype == mx.float32 and rate > 1e-6:
                assert moved > 0, path  # the rate reached this parameter
            elif rate <= 1e-6:
                assert moved <= 2e-6, path
    state = tree_flatten(optimizer.state)
    steps = [value.item() for path, value in state if path.endswith("step")]
    assert steps == [4] * len(steps)


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
