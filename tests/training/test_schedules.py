"""Schedules against their closed forms, for ints and inside compiled steps."""

import math

import mlx.core as mx
import mlx.optimizers as optim
import pytest

from lmxlab.training import TrainConfig, create_schedule

PEAK, WARMUP, STEPS, RATIO = 2e-3, 10, 50, 0.1


def closed_form(kind: str, t: int) -> float:
    if t < WARMUP:
        return 1e-7 + (PEAK - 1e-7) * t / WARMUP
    u = min((t - WARMUP) / (STEPS - WARMUP), 1.0)
    floor = RATIO * PEAK
    return {
        "cosine": floor + (PEAK - floor) * 0.5 * (1 + math.cos(math.pi * u)),
        "linear": PEAK + (floor - PEAK) * u,
        "constant": PEAK,
        "wsd": PEAK if u < 0.8 else PEAK + (floor - PEAK) * (u - 0.8) / 0.2,
    }[kind]


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_schedule_is_its_closed_form_for_ints_and_for_arrays(kind: str) -> None:
    config = TrainConfig(learning_rate=PEAK, warmup_steps=WARMUP, max_steps=STEPS, lr_schedule=kind, min_lr_ratio=RATIO)
    schedule = create_schedule(config)
    compiled = mx.compile(schedule)
    for t in range(STEPS + 5):
        expected = closed_form(kind, t)
        assert isinstance(schedule(t), float)
        assert schedule(t) == pytest.approx(expected, rel=1e-9)
        assert compiled(mx.array(t, mx.uint64)).item() == pytest.approx(expected, rel=2e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (5, 5), (100, 5), (0, 1)])
def test_any_warmup_gives_finite_rates_up_to_the_peak(kind: str, warmup: int, steps: int) -> None:
    config = TrainConfig(learning_rate=PEAK, warmup_steps=warmup, max_steps=steps, lr_schedule=kind)
    schedule = create_schedule(config)
    for t in range(steps + 2):
        assert 0 <= schedule(t) <= PEAK * (1 + 1e-9)
        assert schedule(mx.array(t)).item() == pytest.approx(schedule(t), rel=2e-6, abs=1e-9)
    assert schedule(0) == (pytest.approx(1e-7) if warmup else PEAK)


def test_a_warmup_longer_than_the_run_never_reaches_the_peak() -> None:
    schedule = create_schedule(TrainConfig(learning_rate=1.0, warmup_steps=100, max_steps=10))
    assert schedule(9) == pytest.approx(0.09, rel=1e-4)


def test_an_optimizer_takes_the_schedule() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, max_steps=8, lr_schedule="constant")
    optimizer = optim.SGD(create_schedule(config))
    parameters = {"w": mx.array([0.0])}
    for _ in range(3):
        parameters = optimizer.apply_gradients({"w": mx.array([1.0])}, parameters)
    assert optimizer.learning_rate.item() == pytest.approx(0.5, rel=1e-6)
    assert parameters["w"].item() == pytest.approx(-0.75, rel=1e-6)
