"""The live view of training, on stderr: a table that redraws on a terminal, elsewhere plain lines every few seconds."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lmxlab.cli.render import MISSING, duration, note, number
from lmxlab.experiments.recorder import Observer, Progress
from lmxlab.experiments.spec import RunSpec

LINE_EVERY_S = 10.0
DRAWS_PER_S = 4


class LiveView(Observer):
    """Shows runs as they go: one row each, and the share of the whole budget with the time left.

    Every run has the same FLOP budget, so the time left is what is left of all the budgets at the pace so far.
    """

    def __init__(self, runs: Sequence[RunSpec], title: str, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self._metric = runs[0].method.metric
        self._title, self._runs = title, {_key(spec): _Row(spec) for spec in runs}
        self._start = time.monotonic()
        self._last_line = 0.0
        self._announced = False
        self._skipped = 0  # runs that an earlier process had finished: they cost no time now
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator["LiveView"]:
        """Draws while the block runs; the last state stays on the screen."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(get_renderable=self.render, console=self.console, refresh_per_second=DRAWS_PER_S) as self._live:
            yield self

    def skip(self, spec: RunSpec, score: float | None) -> None:
        """The run was finished by an earlier process."""
        row = self._row(spec)
        row.state, row.used, row.score = "done before", 1.0, score
        self._skipped += 1

    def phase(self, spec: RunSpec, name: str) -> None:
        self._row(spec).state = name
        if name != "data" and not self._announced and not self.console.is_terminal:
            note(self._title)
            self._announced = True

    def step(self, spec: RunSpec, progress: Progress) -> None:
        row = self._row(spec)
        row.loss, row.tokens_per_s, row.used = progress.loss, progress.tokens_per_s, progress.used
        row.score, row.step = progress.score, f"{progress.step}/{progress.steps}"
        self._line(spec, row, force=False)

    def done(self, spec: RunSpec, score: float | None) -> None:
        row = self._row(spec)
        row.state, row.score = ("done", score) if score is not None else ("crashed", None)
        row.used = 1.0
        self._line(spec, row, force=True)

    @property
    def used(self) -> float:
        """Share of the budget of all runs that is spent."""
        return sum(row.used for row in self._runs.values()) / len(self._runs)

    @property
    def time_left_s(self) -> float | None:
        """Seconds until all runs are done at the pace so far; None until there is a pace."""
        total, spent = len(self._runs) - self._skipped, self.used * len(self._runs) - self._skipped
        elapsed = time.monotonic() - self._start
        return elapsed * (total - spent) / spent if spent > 0.02 else None

    def render(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="bold", title=self._title, title_justify="left")
        for name in ("design", "seed"):
            table.add_column(name, no_wrap=True)
        for name in ("step", "loss", self._metric, "tokens/s", "budget"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for row in self._runs.values():
            table.add_row(*row.cells(), style="dim" if row.state == "waiting" else None)
        left = f"{self.used:4.0%} of the budget, {_left(self.time_left_s)}  (Ctrl-C saves and stops)"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=1.0, completed=self.used, width=20), Text(left))
        return Group(table, bar)

    def _row(self, spec: RunSpec) -> "_Row":
        return self._runs.setdefault(_key(spec), _Row(spec))

    def _line(self, spec: RunSpec, row: "_Row", force: bool) -> None:
        """Without a terminal: a line every few seconds, and one per finished run."""
        now = time.monotonic()
        if self._live is not None or self.console.is_terminal or (not force and now - self._last_line < LINE_EVERY_S):
            return
        self._last_line = now
        numbers = [
            f"step {row.step}",
            f"loss {number(row.loss)}",
            f"{self._metric} {number(row.score)}",
            f"{row.speed()} tokens/s",
        ]
        line = f"{spec.name} seed {spec.seed} {row.state}: {', '.join(numbers)}"
        if row.state != "crashed":
            line += f"; {self.used:.0%} of the budget used, {_left(self.time_left_s)}"
        note(line)


class _Row:
    """What the view knows of one run."""

    def __init__(self, spec: RunSpec):
        self.spec = spec
        self.state = "waiting"
        self.step = MISSING
        self.loss: float | None = None
        self.score: float | None = None
        self.tokens_per_s: float | None = None
        self.used = 0.0

    def speed(self) -> str:
        known = self.tokens_per_s is not None and math.isfinite(self.tokens_per_s)
        return f"{self.tokens_per_s:,.0f}" if known else MISSING

    def cells(self) -> list[str]:
        numbers = [number(self.loss), number(self.score), self.speed(), f"{self.used:.0%}"]
        return [self.spec.name, str(self.spec.seed), self.step, *numbers, self.state]


def _key(spec: RunSpec) -> tuple[str, int]:
    return (spec.name, spec.seed)


def _left(seconds: float | None) -> str:
    return "time left unknown yet" if seconds is None else f"{duration(seconds)} left"
