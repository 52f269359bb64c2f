"""The picture of one run: its loss, its score and what else its method tells, step by step."""

import math
from pathlib import Path
from typing import Any

from lmxlab.training.run_folder import RunFolder

# Told with every step, but no curve that anybody would read.
NO_CURVE = (
    "step",
    "tokens",
    "flops",
    "train_s",
    "grad_norm",
    "loss",
    "val_loss",
    "learning_rate",
    "scored_tokens",
    "scored_prompts",
)
MOST_PANELS = 6


def save_run_curves(folder: RunFolder, metric: str, path: Path) -> Path | None:
    """Draws a panel for the loss, one for the score `metric`, and one for each other number of metrics.jsonl.

    Training and validation share a panel where they measure the same: `accuracy` and `val_accuracy`. Writes a PNG to
    `path`; None, and nothing is written, when no metrics are there.
    """
    rows = folder.read_metrics()
    names = {name for row in rows for name, value in row.items() if _is_number(value)}
    panels = ["loss", metric.removeprefix("val_")] if metric != "val_loss" else ["loss"]
    others = {name.removeprefix("val_") for name in names if name not in NO_CURVE and "/" not in name}
    panels += sorted(others - set(panels))[: MOST_PANELS - len(panels)]
    drawn = [(panel, _curves(rows, panel)) for panel in panels]
    drawn = [(panel, curves) for panel, curves in drawn if curves]
    if not drawn:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(drawn))
    n_rows = math.ceil(len(drawn) / columns)
    figure, axes = pyplot.subplots(
        n_rows, columns, figsize=(4.5 * columns, 3.2 * n_rows), dpi=120, layout="constrained", squeeze=False
    )
    for place, (panel, curves) in zip(axes.flat, drawn, strict=False):
        for label, points in curves.items():
            dots = {"marker": "o", "markersize": 3.5} if label == "validation" or len(points) == 1 else {}
            place.plot(*zip(*points, strict=True), label=label, **dots)
        place.set_title(panel.replace("_", " "), fontsize=10)
        place.set_xlabel("step")
        place.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        place.grid(alpha=0.25)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(frameon=False, fontsize=8)
    for unused in list(axes.flat)[len(drawn) :]:
        unused.set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _curves(rows: list[dict[str, Any]], panel: str) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of training and of validation, where there are any."""
    named = {"training": panel, "validation": f"val_{panel}"}
    found = {
        label: [(row["step"], row[name]) for row in rows if _is_number(row.get(name))] for label, name in named.items()
    }
    return {label: points for label, points in found.items() if points}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
