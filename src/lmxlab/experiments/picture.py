"""The picture of a comparison: validation bits per byte against training FLOPs."""

from pathlib import Path

import numpy as np

from lmxlab.experiments.compare import ComparisonResult

# Okabe and Ito's colours: told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SKIPPED_SHARE = 0.1  # of the budget: the fall from random guessing would flatten everything that matters


def save_curves(result: ComparisonResult, path: Path) -> Path:
    """Draws each design's mean curve over the seeds it has, and every seed as a thin line; writes a PNG to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=150, layout="constrained")
    for index, design in enumerate(result.designs):
        colour = COLOURS[index % len(COLOURS)]
        curves = [np.array(e.metrics["curve"]) for e in design.entries if e is not None and e.metrics.get("curve")]
        curves = [curve[curve[:, 0] >= SKIPPED_SHARE * result.plan.flops] for curve in curves]
        for curve in curves:
            axes.plot(*curve.T, color=colour, linewidth=0.8, alpha=0.4)
        if curves:
            mean = np.mean(curves, axis=0)  # (points, 2): one design evaluates every seed at the same steps
            score = design.mean()
            shown = "no score" if score is None else f"{score:.4f}"
            label = f"{design.name}: {shown} ({design.parameters:,} parameters)"
            axes.plot(*mean.T, color=colour, linewidth=2.2, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
    axes.set_xlabel("training compute")
    axes.set_ylabel("validation bits per byte, on an eighth of the scored text")
    n_seeds = len(result.plan.seeds)
    axes.set_title(
        f"{' and '.join(result.plan.names)} on {result.plan.specs[0].data.dataset}: "
        f"mean of {n_seeds} seed{'s' if n_seeds > 1 else ''}, each seed thin",
        fontsize=11,
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_lines():
        scored = result.plan.specs[0].eval_tokens
        axes.legend(title=f"final score ({f'{scored:,} tokens' if scored else 'the whole split'})", frameon=False)
    figure.savefig(path)
    pyplot.close(figure)
    return path
