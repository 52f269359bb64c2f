"""The callbacks: what they write, put into the metrics, stop, and remember."""

import math
from typing import Any

import mlx.core as mx
import pytest
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.errors import UserError
from lmxlab.training import (
    EarlyStopping,
    FLOPCounter,
    HardwareMonitor,
    MetricsLogger,
    ThroughputMonitor,
    TimeBudget,
    Trainer,
    ValTracker,
    detect_peak_tflops,
    monitors,
    standard_callbacks,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves clock[0]."""
    now = [100.0]
    monkeypatch.setattr(monitors.time, "perf_counter", lambda: now[0])
    return now


def test_metrics_logger_writes_loss_and_rate(capsys: pytest.CaptureFixture[str]) -> None:
    logger = MetricsLogger(log_interval=10)
    logger.on_train_begin(None)
    logger.on_step_end(9, {"loss": 1.0, "learning_rate": 1e-4})
    logger.on_step_end(10, {"loss": 5.0, "learning_rate": 3e-4})
    logger.on_step_end(20, {"loss": 4.0})
    logger.on_eval_end(20, {"loss": 4.0, "eval_loss": 4.25})
    logger.on_train_end([{"loss": 5.0}, {"loss": 4.0}])
    assert capsys.readouterr().out.splitlines() == [
        "step 10: loss=5.0000, lr=3.00e-04",
        "step 20: loss=4.0000",
        "step 20: eval_loss=4.2500",
        "Training ended after 2 steps: loss=4.0000",
    ]


def test_throughput_is_steps_and_tokens_over_time(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ThroughputMonitor(log_interval=2, tokens_per_step=50)
    monitor.on_train_begin(None)
    metrics: dict[str, Any] = {}
    for step in (1, 2, 3, 4):
        clock[0] += 0.5 if step < 3 else 0.25
        metrics = {"loss": 1.0}
        monitor.on_step_end(step, metrics)
    assert metrics == {"loss": 1.0, "tokens_processed": 200, "steps_per_sec": 4.0, "tokens_per_sec": 200.0}
    monitor.on_train_end([metrics])
    assert capsys.readouterr().out.splitlines() == [
        "step 2: 2.00 steps/s, 100 tok/s",
        "step 4: 4.00 steps/s, 200 tok/s",
        "Throughput summary: 4 steps in 1.5 s, 2.67 steps/s, 133 tok/s",
    ]


def test_throughput_without_tokens_speaks_of_steps_only(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ThroughputMonitor(log_interval=1)
    metrics: dict[str, Any] = {}
    monitor.on_step_end(1, metrics)
    monitor.on_train_end([metrics])
    out = capsys.readouterr().out
    assert "steps/s" in out and "Throughput summary" in out and "tok/s" not in out
    assert set(metrics) == {"steps_per_sec"}


def test_early_stopping_counts_evaluations_without_gain() -> None:
    stopping = EarlyStopping(patience=2, min_delta=0.1)
    seen = []
    for loss in (2.0, 1.95, 1.8, 1.75, 1.71):  # gains of 0.05, 0.2, 0.05, 0.09
        stopping.on_eval_end(0, {"eval_loss": loss})
        seen.append(stopping.should_stop)
    assert seen == [False, False, False, False, True]
    stopping.on_train_begin(None)
    assert not stopping.should_stop


def test_early_stopping_ends_a_run() -> None:
    trainer = Trainer(
        tiny_model(),
        tiny_config(max_steps=50, learning_rate=1e-9, eval_interval=2),
        callbacks=[EarlyStopping(patience=3)],
    )
    trainer.train(Cursor(), [batch(99)])
    assert trainer.step == 8  # the first evaluation sets the best, three more without gain


def test_flop_budget_is_exact_to_one_step() -> None:
    counter = FLOPCounter(flops_per_step=3e9, log_interval=100, flop_budget=10e9)
    history = Trainer(tiny_model(), tiny_config(max_steps=50), callbacks=[counter]).train(Cursor())
    assert [step["total_flops"] for step in history] == [3e9, 6e9, 9e9, 12e9]
    assert FLOPCounter(5e9, flop_budget=10e9).should_stop is False
    counter = FLOPCounter(flops_per_step=5e9, log_interval=100, flop_budget=10e9)
    assert len(Trainer(tiny_model(), tiny_config(), callbacks=[counter]).train(Cursor())) == 2


def test_flop_rate_and_utilisation(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    counter = FLOPCounter(1e12, log_interval=2, hardware_peak_tflops=8.0)
    counter.on_train_begin(None)
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    clock[0] += 0.5
    counter.on_step_end(1, first)
    clock[0] += 0.5
    counter.on_step_end(2, second)
    assert first == {"total_flops": 1e12}
    assert second == {"total_flops": 2e12, "tflops_per_sec": 2.0, "mfu": 0.25}
    assert capsys.readouterr().out == "step 2: 2.000e+12 FLOPs, 2.000 TFLOP/s, MFU 25.0%\n"


def test_hardware_monitor_reports_time_and_memory(clock: list[float]) -> None:
    monitor = HardwareMonitor()
    monitor.on_train_begin(None)
    clock[0] += 2.5
    keep = mx.zeros(1000)
    mx.eval(keep)
    metrics: dict[str, Any] = {}
    monitor.on_step_end(1, metrics)
    assert metrics == {"wall_time_s": 2.5, "peak_memory_mb": mx.get_peak_memory() / 1e6}


def test_val_tracker_scores_at_begin_at_its_interval_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(dropout=0.2)
    tracker = ValTracker(model, [batch(99)], eval_interval=3)
    assert tracker.init_val_loss is None
    before = Trainer(model, tiny_config()).evaluate([batch(99)])["eval_loss"]
    trainer = Trainer(model, tiny_config(max_steps=8), callbacks=[tracker])
    history = trainer.train(Cursor())
    assert tracker.init_val_loss == pytest.approx(before)
    assert {step["init_val_loss"] for step in history} == {tracker.init_val_loss}
    assert [index + 1 for index, step in enumerate(history) if "val_loss" in step] == [3, 6, 8]
    last = history[-1]
    assert last["val_loss"] == pytest.approx(trainer.evaluate([batch(99)])["eval_loss"])
    assert last["train_val_gap"] == pytest.approx(last["val_loss"] - last["loss"])
    assert last["best_val_loss"] == tracker.best_val_loss <= tracker.init_val_loss
    out = capsys.readouterr().out.splitlines()
    assert out == [f"init_val_loss={before:.4f}", f"final_val_loss={last['val_loss']:.4f}"]
    assert model.training


def test_time_budget_refuses_no_time() -> None:
    with pytest.raises(UserError, match="above 0 seconds"):
        TimeBudget(0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [ThroughputMonitor, HardwareMonitor, MetricsLogger]),
        ({"flops_per_step": 1.0}, [ThroughputMonitor, FLOPCounter, HardwareMonitor, MetricsLogger]),
        ({"model": tiny_model()}, [ThroughputMonitor, HardwareMonitor, MetricsLogger]),
        (
            {"flops_per_step": 1.0, "flop_budget": 5.0, "model": tiny_model(), "val_batches": [batch()]},
            [ThroughputMonitor, FLOPCounter, HardwareMonitor, ValTracker, MetricsLogger],
        ),
    ],
)
def test_standard_callbacks_in_order(arguments: dict[str, Any], expected: list[type]) -> None:
    assert [type(callback) for callback in standard_callbacks(**arguments)] == expected


def test_standard_callbacks_write_the_lines_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    callbacks = standard_callbacks(
        log_interval=4, tokens_per_step=48, flops_per_step=1e6, model=model, val_batches=[batch(99)], eval_interval=4
    )
    Trainer(model, tiny_config(), callbacks=callbacks).train(Cursor())
    out = capsys.readouterr().out
    for text in ("init_val_loss=", "steps/s", "tok/s", "step 8: loss=", "Throughput summary", "final_val_loss="):
        assert text in out


def test_states_go_on_where_they_were() -> None:
    stopping = EarlyStopping(patience=3)
    assert stopping.state_dict() == {"best_loss": None, "evals_without_gain": 0}
    for loss in (1.0, 1.0, 1.0):
        stopping.on_eval_end(0, {"eval_loss": loss})
    again = EarlyStopping(patience=3)
    again.load_state_dict(stopping.state_dict())
    again.on_eval_end(0, {"eval_loss": 1.0})
    assert again.should_stop
    fresh = EarlyStopping()
    fresh.load_state_dict(EarlyStopping().state_dict())
    assert fresh.best_loss == math.inf


def test_peak_of_this_device_is_known_or_none() -> None:
    peak = detect_peak_tflops()
    assert peak is None if not mx.metal.is_available() else peak is None or 1 < peak < 100
