"""The live view: the share of the budget, the time left at the pace so far, a table or plain lines."""

import dataclasses
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from lmxlab.cli.live import LiveView
from lmxlab.experiments.recorder import Progress
from lmxlab.experiments.spec import RunSpec
from lmxlab.models.gpt import gpt_tiny

GPT = RunSpec("gpt", gpt_tiny())
RUNS = [dataclasses.replace(GPT, name=name, seed=seed) for seed in (0, 1) for name in ("gpt", "llama")]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The view's clock, which stands still until a test moves `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("lmxlab.cli.live.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def view(clock: SimpleNamespace) -> LiveView:
    return LiveView(RUNS, "four runs", Console(file=io.StringIO()))


def at(step: int, val_bpb: float | None = None) -> Progress:
    return Progress(step, 10, loss=2.5, tokens_per_s=1234.5, score=val_bpb)


def test_the_share_of_the_budget_is_that_of_all_runs(view: LiveView) -> None:
    assert view.used == 0
    view.step(RUNS[0], at(5))
    assert view.used == 0.5 / 4
    view.done(RUNS[0], 3.0)
    view.done(RUNS[1], None)  # a crash takes no more of the budget
    assert view.used == 2 / 4
    view.skip(RUNS[2], 3.0)
    view.step(RUNS[3], at(10))
    assert view.used == 1


def test_the_time_left_follows_the_pace_so_far(view: LiveView, clock: SimpleNamespace) -> None:
    clock.now += 10
    assert view.time_left_s is None
    view.step(RUNS[0], at(5))
    assert view.time_left_s == pytest.approx(10 * 3.5 / 0.5)
    clock.now += 10
    view.done(RUNS[0], 3.0)
    assert view.time_left_s == pytest.approx(20 * 3)
    for run in RUNS[1:]:
        view.done(run, 3.0)
    assert view.time_left_s == 0


def test_runs_of_an_earlier_process_say_nothing_of_the_pace(view: LiveView, clock: SimpleNamespace) -> None:
    view.skip(RUNS[0], 3.0)
    view.skip(RUNS[1], 3.0)
    clock.now += 10
    assert view.used == 0.5 and view.time_left_s is None
    view.step(RUNS[2], at(5))
    assert view.time_left_s == pytest.approx(10 * 1.5 / 0.5)


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_with_every_end(
    view: LiveView, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with view.shown():
        view.phase(RUNS[0], "data")
        assert capsys.readouterr().err == ""
        view.phase(RUNS[0], "compile")
        view.phase(RUNS[0], "train")
        assert capsys.readouterr().err == "four runs\n"
        clock.now += 10
        for step, seconds in ((5, 0.0), (6, 9.9), (7, 0.1), (8, 1.0)):
            clock.now += seconds
            view.step(RUNS[0], at(step, 3.25 if step > 5 else None))
        view.done(RUNS[0], 3.0)
        view.phase(RUNS[1], "train")
        view.done(RUNS[1], None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "gpt seed 0 train: step 5/10, loss 2.5000, val_bpb -, 1,234 tokens/s; 12% of the budget used, 1 min 10 s left",
        "gpt seed 0 train: step 7/10, loss 2.5000, val_bpb 3.2500, 1,234 tokens/s; "
        "18% of the budget used, 1 min 34 s left",
        "gpt seed 0 done: step 8/10, loss 2.5000, val_bpb 3.0000, 1,234 tokens/s; "
        "25% of the budget used, 1 min 03 s left",
        "llama seed 0 crashed: step -, loss -, val_bpb -, - tokens/s",
    ]


def test_a_line_before_there_is_a_pace_says_so(view: LiveView, capsys: pytest.CaptureFixture[str]) -> None:
    view.step(RUNS[0], Progress(0, 10, 2.5, float("nan"), None))
    line = capsys.readouterr().err
    assert "- tokens/s" in line and line.endswith("0% of the budget used, time left unknown yet\n")


def test_a_terminal_shows_every_run_and_no_plain_line(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    view = LiveView(RUNS, "four runs", Console(file=screen, force_terminal=True, width=120, color_system=None))
    with view.shown():
        view.skip(RUNS[0], 3.0)
        view.phase(RUNS[1], "train")
        clock.now += 90
        view.step(RUNS[1], at(5, 3.25))
    assert capsys.readouterr().err == "" and "budget used" not in screen.getvalue()
    last = screen.getvalue().rpartition("four runs")[2]  # the last drawing
    rows = [line.split() for line in last.splitlines()]
    assert ["gpt", "0", "-", "-", "3.0000", "-", "100%", "done", "before"] in rows
    assert ["llama", "0", "5/10", "2.5000", "3.2500", "1,234", "50%", "train"] in rows
    assert ["gpt", "1", "-", "-", "-", "-", "0%", "waiting"] in rows
    assert "38% of the budget, 7 min 30 s left" in last
