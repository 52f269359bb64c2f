"""Figures show the numbers they are given, the right way round, and open no window."""

import sys

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import ActivationCapture, extract_attention_maps, gradient_norms
from lmxlab.analysis.plotting import (
    plot_attention_heatmap,
    plot_gradient_flow,
    plot_heatmap,
    plot_layer_norms,
    plot_loss_curves,
)
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny

TOKENS = mx.array([[1, 2, 3, 4]])


def heights(axes) -> list[float]:
    return [bar.get_height() for bar in axes.patches]


def test_loss_curves() -> None:
    axes = plot_loss_curves([3.0, 2.0, 1.5, 1.2], [2.5, 1.4]).axes[0]
    train, val = axes.get_lines()
    assert train.get_xydata().tolist() == [[1, 3.0], [2, 2.0], [3, 1.5], [4, 1.2]]
    assert val.get_xydata().tolist() == [[2, 2.5], [4, 1.4]]
    assert axes.get_title() == "Training Loss" and axes.get_legend() is not None
    assert len(plot_loss_curves([1.0]).axes[0].get_lines()) == 1


def test_layer_norms_are_bars_of_the_outputs() -> None:
    model = LanguageModel(gpt_tiny())
    with ActivationCapture(model) as capture:
        model(TOKENS)
    norms = capture.layer_norms()
    found = heights(plot_layer_norms(capture.activations).axes[0])
    assert found == pytest.approx([norms["layer_0/output"], norms["layer_1/output"]])
    with pytest.raises(UserError, match="no 'layer_N/output'"):
        plot_layer_norms({"layer_0/input": mx.zeros(3)})


def test_an_attention_heatmap_has_a_row_for_each_query() -> None:
    maps = extract_attention_maps(LanguageModel(gpt_tiny()), TOKENS)
    figure = plot_attention_heatmap(maps["layer_1"], ["a", " ", "\n", "d"], head=1, layer=1)
    axes = figure.axes[0]
    assert np.allclose(axes.get_images()[0].get_array(), maps["layer_1"][0, 1])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "\N{OPEN BOX}", r"\n", "d"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key", "query")
    assert axes.get_title() == "Attention, layer 1, head 1"
    with pytest.raises(UserError, match="the head 2"):
        plot_attention_heatmap(maps["layer_1"], head=2)
    with pytest.raises(UserError, match="3 names are given for 4"):
        plot_heatmap(np.zeros((4, 4)), columns=list("abc"))


def test_gradient_flow_shows_real_gradients_of_the_batch() -> None:
    model = LanguageModel(gpt_tiny())
    model.train()
    x, y = TOKENS[:, :-1], TOKENS[:, 1:]
    norms = gradient_norms(model, x, y)
    assert list(norms) == ["embed", "blocks.0", "blocks.1", "final_norm"]
    axes = plot_gradient_flow(model, batch=(x, y)).axes[0]
    assert heights(axes) == pytest.approx(list(norms.values())) and model.training
    weight = model.final_norm.weight
    eps, losses = 1e-2, []
    for sign in (1, -1):  # the norm's gradient by finite differences, for one channel
        step = mx.zeros(weight.shape)
        step[5] = sign * eps
        model.final_norm.weight = weight + step
        losses.append(model.nats(x, y).mean().item())
    model.final_norm.weight = weight
    assert abs(losses[0] - losses[1]) / (2 * eps) <= norms["final_norm"] * 1.01
    model.blocks[1].freeze()
    assert "blocks.1" not in gradient_norms(model, x, y)


def test_gradient_flow_without_a_batch_is_the_same_each_time_and_draws_no_number() -> None:
    model = LanguageModel(gpt_tiny())
    key = mx.array(mx.random.state[0])
    first, second = (heights(plot_gradient_flow(model).axes[0]) for _ in range(2))
    assert first == second and mx.array_equal(mx.random.state[0], key)


def test_figures_are_saved_without_pyplot(tmp_path) -> None:
    plot_heatmap(np.array([[1.0, np.nan], [0.0, -1.0]]), colours="RdBu_r").savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plot_loss_curves([1.0])
