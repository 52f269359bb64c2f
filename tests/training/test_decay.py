"""Cautious weight decay: only where it does not work against the step."""

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.training import TrainConfig, create_optimizer
from lmxlab.training.adamw import AdamW
from lmxlab.training.config import CAUTIOUS


def test_a_number_decays_where_its_step_leads_towards_0_or_nowhere() -> None:
    """AdamW's first step is lr times the gradient's sign."""
    weight = mx.array([[1.0, 1.0, -1.0, -1.0, 1.0]])
    gradient = mx.array([[2.0, -2.0, 2.0, -2.0, 0.0]])
    moved = AdamW(0.1, decay=0.5, cautious=True).apply_gradients({"w": gradient}, {"w": weight})["w"]
    expected = [[0.9 - 0.05, 1.1, -1.1, -0.9 + 0.05, 1.0 - 0.05]]
    assert mx.allclose(moved, mx.array(expected), atol=1e-6)
    plain = AdamW(0.1, decay=0.5).apply_gradients({"w": gradient}, {"w": weight})["w"]
    assert mx.allclose(plain, mx.array([[0.85, 1.05, -1.05, -0.85, 0.95]]), atol=1e-6)


@pytest.mark.parametrize("name", CAUTIOUS)
def test_every_optimizer_that_may_be_cautious_is(name: str) -> None:
    """What a plain step and a step with decay do to each number is told apart by its direction."""
    weight, gradient = mx.random.normal((6, 6)), mx.random.normal((6, 6))
    settings = {"optimizer": name, "warmup_steps": 0, "lr_schedule": "constant", "learning_rate": 0.1}

    def step(**changes: object) -> mx.array:
        optimizer = create_optimizer(TrainConfig(**settings, **changes))  # type: ignore[arg-type]
        return optimizer.apply_gradients({"up": gradient}, {"up": weight})["up"]

    free, cautious = step(weight_decay=0.0), step(weight_decay=0.5, cautious_decay=True)
    shrinks = (weight - free) * weight >= 0
    assert mx.allclose(cautious, free - mx.where(shrinks, 0.05, 0.0) * weight, atol=1e-6)
    assert 0 < shrinks.sum().item() < 36


def test_where_the_decay_is_part_of_the_gradient_caution_is_refused() -> None:
    with pytest.raises(UserError, match="cautious_decay goes with adamw, lion, muon, normuon, not with 'sgd'"):
        TrainConfig(optimizer="sgd", cautious_decay=True)
