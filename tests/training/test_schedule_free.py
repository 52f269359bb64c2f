"""Schedule-free AdamW against the authors' package, and what its parameters are."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from optimizer_runs import SHAPES, constant, gap, problem
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.training import Trainer, create_optimizer
from lmxlab.training.objective import token_nats
from lmxlab.training.schedule_free import ScheduleFreeAdamW


@pytest.mark.oracle
@pytest.mark.parametrize("warmup", [0, 4])
def test_ten_steps_are_those_of_the_schedulefree_package(warmup: int) -> None:
    """Also the point at which it takes gradients: they depend on it here, as in a model."""
    torch = pytest.importorskip("torch", reason="the oracle for optimizers is torch: pip install lmxlab[oracle]")
    schedulefree = pytest.importorskip("schedulefree", reason="the oracle is schedulefree")
    start, noise = problem(SHAPES)
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    reference = schedulefree.AdamWScheduleFree(theirs.values(), lr=1e-2, weight_decay=0.1, warmup_steps=warmup)
    rates = mx.array([min(1.0, (t + 1) / warmup) if warmup else 1.0 for t in range(20)]) * 1e-2
    ours = ScheduleFreeAdamW(lambda step: rates[step], decay=0.1)
    parameters = {name: mx.array(value) for name, value in start.items()}
    ours.init(parameters)
    reference.train()
    for step in noise:
        at = ours.gradient_point(parameters)
        assert gap({n: np.array(p) for n, p in at.items()}, {n: p.detach().numpy() for n, p in theirs.items()}) <= 1e-5
        gradients = {name: mx.array(step[name]) + at[name] for name in step}
        parameters = ours.apply_gradients(gradients, parameters)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(step[name]) + parameter.detach()
        reference.step()
    reference.eval()
    found = {name: np.array(p) for name, p in parameters.items()}
    difference = gap(found, {name: p.detach().numpy() for name, p in theirs.items()})
    print(f"schedule_free: {difference:.1e}")
    assert difference <= 1e-5


def test_at_a_constant_rate_the_parameters_are_the_mean_of_all_iterates() -> None:
    optimizer = create_optimizer(constant("schedule_free"))
    parameters, iterates = {"w": mx.zeros((3, 3))}, []
    for i in range(5):
        parameters = optimizer.apply_gradients({"w": mx.random.normal((3, 3), key=mx.random.key(i))}, parameters)
        iterates.append(optimizer.state["w"]["z"])
    assert mx.allclose(parameters["w"], mx.stack(iterates).mean(axis=0), atol=1e-6)


def test_when_the_rate_falls_iterates_still_weigh_by_the_largest() -> None:
    rates = mx.array([0.1, 0.4, 0.2, 0.05])
    optimizer, iterates = ScheduleFreeAdamW(lambda step: rates[step]), []
    parameters = {"w": mx.zeros((3, 3))}
    for i in range(4):
        parameters = optimizer.apply_gradients({"w": mx.random.normal((3, 3), key=mx.random.key(i))}, parameters)
        iterates.append(optimizer.state["w"]["z"])
    weights = mx.array([0.1, 0.4, 0.4, 0.4]) ** 2
    mean = (mx.stack(iterates) * weights[:, None, None]).sum(axis=0) / weights.sum()
    assert mx.allclose(parameters["w"], mean, atol=1e-6)


def test_without_init_the_iterate_starts_at_the_parameters() -> None:
    optimizer = create_optimizer(constant("schedule_free"))
    start = mx.full((2, 2), 7.0)
    optimizer.apply_gradients({"bias": mx.zeros((2, 2))}, {"bias": start, "other": mx.zeros(3)})
    assert mx.array_equal(optimizer.state["bias"]["z"], start)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_takes_gradients_between_and_evaluates_the_average(accumulation: int, tmp_path: Path) -> None:
    model = tiny_model()
    config = tiny_config(optimizer="schedule_free", lr_schedule="constant", learning_rate=1e-2, compile_step=True)
    trainer = Trainer(model, config)
    trainer.train(Cursor())
    average = tree_map(mx.array, model.trainable_parameters())
    between = trainer.optimizer.gradient_point(average)
    probe = [batch(70), batch(71)][:accumulation]

    def loss(parameters: dict) -> float:
        model.update(parameters)
        sums = [token_nats(model, *pair) for pair in probe]
        model.update(average)
        return sum(s.item() for s, _ in sums) / sum(n.item() for _, n in sums)

    at_average, at_between = loss(average), loss(between)
    assert abs(at_average - at_between) > 1e-3
    assert trainer.evaluate(probe)["eval_loss"] == pytest.approx(at_average, rel=1e-5)
    assert trainer.train_step_accumulated(probe)["loss"] == pytest.approx(at_between, rel=1e-5)
    moved = [mx.abs(p - q).max().item() for (_, p), (_, q) in zip(
        tree_flatten(model.trainable_parameters()), tree_flatten(average), strict=True)]  # fmt: skip
    assert min(moved) > 0 and max(moved) < 1e-2  # from the average, not from the point between
