"""The picture of a run: a panel for what there is to see, and none without metrics."""

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmxlab.experiments.run_picture import save_run_curves
from lmxlab.training.run_folder import RunFolder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    axes: list[Axes] = []
    save = Figure.savefig

    def keep(figure: Figure, *arguments: object, **options: object) -> None:
        axes.extend(place for place in figure.axes if place.get_visible())
        save(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", keep)
    return axes


def test_training_and_validation_share_a_panel(tmp_path: Path, drawn: list[Axes]) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append_metrics(step, {"loss": 3.0 - step, "accuracy": step / 4, "tokens": 8, "learning_rate": 1e-3})
    folder.append_metrics(2, {"val_loss": 1.5, "val_accuracy": 0.5, "val_margin": float("nan")})
    path = save_run_curves(folder, "val_accuracy", tmp_path / "curves.png")
    assert path is not None and path.stat().st_size > 5_000
    assert [place.get_title() for place in drawn] == ["loss", "accuracy"]
    training, validation = drawn[1].get_lines()
    assert training.get_xydata().tolist() == [[1, 0.25], [2, 0.5], [3, 0.75]]  # type: ignore[union-attr]
    assert validation.get_label() == "validation" and validation.get_xydata().tolist() == [[2, 0.5]]  # type: ignore[union-attr]


def test_a_run_without_metrics_has_no_picture(tmp_path: Path) -> None:
    assert save_run_curves(RunFolder(tmp_path), "val_bpb", tmp_path / "curves.png") is None
    assert not (tmp_path / "curves.png").exists()
