"""Pictures of training and of what is inside a model, as matplotlib figures that belong to no window."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from lmxlab.analysis.activations import l2_norm
from lmxlab.analysis.gradients import gradient_norms
from lmxlab.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's blue and orange: told apart by colour-blind readers and in print.
FIRST, SECOND = "#0072B2", "#D55E00"
MOST_LABELS = 40  # tokens beside a heatmap


def plot_loss_curves(
    train_losses: Sequence[float], val_losses: Sequence[float] | None = None, title: str = "Training Loss"
) -> "Figure":
    """Training loss of every step, and validation losses spread evenly over the same steps, the last at the end."""
    figure, axes = _figure(7, 4)
    steps = len(train_losses)
    axes.plot(range(1, steps + 1), train_losses, color=FIRST, linewidth=1.2, label="training")
    if val_losses is not None and len(val_losses):
        where = np.arange(1, len(val_losses) + 1) * max(steps, 1) / len(val_losses)
        axes.plot(where, val_losses, color=SECOND, linewidth=1.8, marker="o", markersize=4, label="validation")
        axes.legend(frameon=False)
    axes.set(title=title, xlabel="step", ylabel="loss, nats per token")
    return figure


def plot_layer_norms(activations: Mapping[str, mx.array], title: str = "Activation L2 Norms by Layer") -> "Figure":
    """A bar for the L2 norm of each "layer_N/output" of an ActivationCapture."""
    norms = {
        int(name.split("/")[0].removeprefix("layer_")): l2_norm(x)
        for name, x in activations.items()
        if name.endswith("/output")
    }
    if not norms:
        raise UserError(f"There is no 'layer_N/output' among {sorted(activations)}: capture the places 'output'.")
    figure, axes = _figure(7, 4)
    axes.bar([str(layer) for layer in sorted(norms)], [norms[layer] for layer in sorted(norms)], color=FIRST)
    axes.set(title=title, xlabel="layer", ylabel="L2 norm of the output")
    return figure


def plot_attention_heatmap(
    weights: mx.array,
    tokens: Sequence[str] | None = None,
    head: int = 0,
    layer: int = 0,
    title: str | None = None,
) -> "Figure":
    """One head's weights (B, H, T, T) for the batch's first item: a row for each query; `layer` is for the title."""
    if weights.ndim != 4 or not 0 <= head < weights.shape[1]:
        raise UserError(
            f"Weights are {tuple(weights.shape)}, the head {head}: give (B, H, T, T) and a head of 0 to H - 1"
        )
    return plot_heatmap(
        np.array(weights[0, head].astype(mx.float32)),
        title=title or f"Attention, layer {layer}, head {head}",
        labels=("key", "query"),
        columns=tokens,
        rows=tokens,
        limits=(0.0, None),
    )


def plot_heatmap(
    values: np.ndarray,
    title: str = "",
    labels: tuple[str, str] = ("", ""),
    columns: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    colours: str = "viridis",
) -> "Figure":
    """Numbers (rows, columns) as colours, the first row on top; NaN is left white.

    Args:
        labels: of the axes, x first.
        columns, rows: what stands beside them; numbers if None, or if they are more than MOST_LABELS.
        limits: of the colours; None: the values' own.
        colours: the name of a colour map: "viridis", or "RdBu_r" for what has a sign.
    """
    height, width = values.shape
    figure, axes = _figure(min(1.8 + 0.32 * width, 12), min(1.4 + 0.32 * height, 10))
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
    for names, size, axis in ((columns, width, axes.xaxis), (rows, height, axes.yaxis)):
        if names is not None and size <= MOST_LABELS:
            if len(names) != size:
                raise UserError(f"{len(names)} names are given for {size} rows or columns: give one each")
            axis.set_ticks(range(size), [_shown(name) for name in names])
        elif size <= 20:
            axis.set_ticks(range(size))
    if columns is not None and width <= MOST_LABELS:
        axes.tick_params(axis="x", rotation=90 if max(map(len, columns), default=0) > 2 else 0)
    axes.set(title=title, xlabel=labels[0], ylabel=labels[1])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def plot_gradient_flow(
    model: Any, title: str = "Gradient Flow", *, batch: tuple[mx.array, mx.array] | None = None
) -> "Figure":
    """A bar for the norm of each layer's gradient of the loss on `batch`, on a logarithmic scale.

    Args:
        batch: tokens and next tokens, both (B, T); without it, seeded random ones, which show how gradients flow
            at initialisation but not what the data does.
    """
    if batch is None:
        length = min(32, model.config.block.max_seq_len)
        tokens = mx.random.randint(0, model.config.vocab_size, (4, length + 1), key=mx.random.key(0))
        batch = tokens[:, :-1], tokens[:, 1:]
    norms = gradient_norms(model, *batch)
    figure, axes = _figure(max(5, 1.5 + 0.45 * len(norms)), 4)
    positive = {name: norm for name, norm in norms.items() if norm > 0}
    axes.bar(list(norms), [max(norm, 0.0) for norm in norms.values()], color=FIRST)
    if positive:
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(positive.values()) / 3)
    axes.set(title=title, xlabel="from the embedding to the head", ylabel="L2 norm of the gradient")
    axes.tick_params(axis="x", rotation=60)
    return figure


def _shown(name: str) -> str:
    """A token's text where white space would not be seen."""
    return name if name.strip() else repr(name)[1:-1].replace(" ", "\N{OPEN BOX}")


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("Pictures need matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
