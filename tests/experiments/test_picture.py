"""The picture of a comparison: a PNG with one curve per design that has something to show."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmxlab.experiments.compare import ComparisonResult, DesignResult
from lmxlab.experiments.comparison_plan import ComparisonPlan
from lmxlab.experiments.picture import COLOURS, save_curves
from lmxlab.experiments.tracking import LogEntry

from .conftest import spec

BUDGET = 1e9
# (FLOPs, val_bpb) of a run; the first point lies below a tenth of the budget.
FIRST, SECOND = [[5e7, 8.0], [5e8, 4.0], [1e9, 3.0]], [[5e7, 8.2], [5e8, 4.2], [1e9, 3.1]]


def entry(curve: list[list[float]]) -> LogEntry:
    return LogEntry(val_bpb=curve[-1][1], metrics={"curve": curve})


def result(folder: Path, **designs: tuple[LogEntry | None, ...]) -> ComparisonResult:
    specs = tuple(dataclasses.replace(spec(), name=name) for name in designs)
    results = tuple(DesignResult(name, 1234, entries) for name, entries in designs.items())
    return ComparisonResult(folder, ComparisonPlan(specs, (0, 1), BUDGET), results, ())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure that is saved."""
    axes: list[Axes] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        axes.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return axes


def curves(axes: Axes) -> dict[str, list[list[float]]]:
    """The points of each labelled line, as they are in the legend."""
    return {
        line.get_label().partition(":")[0]: line.get_xydata().tolist() for line in axes.get_legend_handles_labels()[0]
    }


def test_each_design_has_one_curve_the_mean_of_its_seeds(tmp_path: Path, drawn: list[Axes]) -> None:
    path = tmp_path / "curves.png"
    made = result(tmp_path, gpt=(entry(FIRST), entry(SECOND)), llama=(entry(SECOND), entry(SECOND)))
    assert save_curves(made, path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    (axes,) = drawn
    shown = curves(axes)
    assert list(shown) == ["gpt", "llama"]
    np.testing.assert_allclose(shown["gpt"], [[5e8, 4.1], [1e9, 3.05]])
    np.testing.assert_allclose(shown["llama"], SECOND[1:])
    assert len(axes.lines) == 2 + 4  # and every seed, thin
    thick = [line for line in axes.lines if line.get_linewidth() > 2]
    assert [line.get_color() for line in thick] == list(COLOURS[:2])
    assert thick[0].get_label() == "gpt: 3.0500 (1,234 parameters)"
    assert "gpt and llama on" in axes.get_title() and "2 seeds" in axes.get_title()


def test_a_design_without_a_finished_run_has_no_curve(tmp_path: Path, drawn: list[Axes]) -> None:
    made = result(tmp_path, gpt=(None, LogEntry(status="crash")), llama=(entry(FIRST), None))
    assert save_curves(made, tmp_path / "curves.png").stat().st_size > 1000
    (axes,) = drawn
    assert curves(axes) == {"llama": FIRST[1:]}
    assert [line.get_color() for line in axes.lines] == [COLOURS[1]] * 2  # a design keeps its colour
