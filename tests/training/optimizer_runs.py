"""The same gradients given to an optimizer here and to a reference in PyTorch."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from lmxlab.training import TrainConfig

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


def constant(optimizer: str, **changes: Any) -> TrainConfig:
    return TrainConfig(
        optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1, warmup_steps=0, lr_schedule="constant", **changes
    )
