"""What the metric callbacks tell is what numpy computes from the model, and looking changes nothing."""

import dataclasses
import logging
import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_lm import Cursor, batch, tiny_config, tiny_model

from lmxlab.analysis import ActivationCapture, extract_attention_maps
from lmxlab.analysis.attention import row_entropy
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.models.gpt import gpt_config, gpt_tiny
from lmxlab.training import (
    ActivationStatsCallback,
    AttentionEntropyCallback,
    EffectiveRankCallback,
    GradientStatsCallback,
    LossCurvatureCallback,
    Trainer,
    WeightStatsCallback,
)
from lmxlab.training.metric_callbacks import effective_rank
from lmxlab.training.noise_scale import GradientNoiseScaleCallback
from lmxlab.training.objective import next_token

TOKENS = mx.array([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])


def told(callback: Any, step: int, **metrics: float) -> dict[str, float]:
    found: dict[str, Any] = dict(metrics)
    callback.on_step_end(step, found)
    return {name: value for name, value in found.items() if name.startswith("exp_")}


def mean_loss(model: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    return model.nats(x, y).mean()


def test_gradient_norms_are_those_of_the_probe_batch_by_layer() -> None:
    model, probe = tiny_model(dropout=0.5), batch(3)
    model.train()
    callback = GradientStatsCallback(model, mean_loss, log_interval=5)
    assert told(callback, 5) == {}  # no probe batch yet
    callback.set_probe_batch(probe)
    assert told(callback, 4) == {}
    found = told(callback, 5)
    model.eval()
    _, gradients = nn.value_and_grad(model, mean_loss)(model, *probe)
    model.train()
    layers: dict[str, float] = {}
    for path, gradient in tree_flatten(gradients):
        name = ".".join(path.split(".")[: 2 if path.startswith("blocks") else 1])
        layers[name] = layers.get(name, 0.0) + float(mx.square(gradient).sum().item())
    norms = np.sqrt(list(layers.values()))
    assert len(norms) == 5
    assert found == pytest.approx(
        {
            "exp_grad_norm_mean": norms.mean(),
            "exp_grad_norm_std": norms.std(),
            "exp_grad_norm_max_layer": norms.max(),
        },
        rel=1e-4,
    )
    assert model.training and model.blocks[0].drop.training


@pytest.mark.parametrize("kind", ["bound", "objective", "tuple"])
def test_a_loss_function_may_be_bound_to_the_model_or_be_an_objective(kind: str) -> None:
    model, probe = tiny_model(), batch(3)
    forms: dict[str, Any] = {
        "bound": lambda x, y: mean_loss(model, x, y),
        "objective": next_token,
        "tuple": lambda model, x, y: (mean_loss(model, x, y), mx.array(3.0)),
    }
    results = []
    for loss in (mean_loss, forms[kind]):
        callback = GradientStatsCallback(model, loss, log_interval=1)
        callback.set_probe_batch(probe)
        results.append(told(callback, 1))
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_weight_norm_and_how_far_it_is_from_the_beginning() -> None:
    model = tiny_model()
    callback = WeightStatsCallback(model, log_interval=2)
    callback.on_train_begin(None)
    norm = math.sqrt(sum(float(mx.square(p).sum().item()) for _, p in tree_flatten(model.parameters())))
    assert told(callback, 1) == {}
    assert told(callback, 2) == pytest.approx({"exp_weight_norm": norm, "exp_weight_delta": 0.0}, rel=1e-5)
    model.embed.weight = model.embed.weight * 0
    found = told(callback, 4)
    assert found["exp_weight_delta"] == pytest.approx(norm - found["exp_weight_norm"], rel=1e-5)
    assert found["exp_weight_delta"] > 0.01


def test_activations() -> None:
    model = LanguageModel(gpt_config(vocab_size=32, d_model=32, n_heads=2, n_layers=3, d_ff=64, dropout=0.5))
    model.train()
    callback = ActivationStatsCallback(model, TOKENS, eval_interval=10, eps=0.05)
    assert told(callback, 9) == {}
    found = told(callback, 10)
    with ActivationCapture(model) as capture:
        model(TOKENS)
    outputs = [np.array(capture.activations[f"layer_{i}/output"]) for i in range(3)]
    ratio = np.linalg.norm(outputs[2]) / np.linalg.norm(outputs[0])
    sparsity = np.mean([(np.abs(x) < 0.05).mean() for x in outputs])
    assert found == pytest.approx({"exp_act_norm_ratio": ratio, "exp_act_sparsity_mean": sparsity}, rel=1e-5)
    assert 0.005 < sparsity < 0.5 and model.training


def test_attention_entropy_is_over_the_heads_of_all_layers() -> None:
    model = LanguageModel(gpt_tiny())
    model.blocks[0].attention.q_proj.weight *= 400  # one layer looks at few tokens, the other at all
    found = told(AttentionEntropyCallback(model, TOKENS, eval_interval=1), 1)
    maps = [np.array(map_) for map_ in extract_attention_maps(model, TOKENS).values()]
    with np.errstate(all="ignore"):
        heads = [-np.nansum(np.where(m > 0, m * np.log(m), 0), axis=-1).mean(axis=(0, 2)) for m in maps]
    assert found == pytest.approx(
        {"exp_attn_entropy_mean": np.mean(heads), "exp_attn_entropy_std": np.std(heads)}, rel=1e-4
    )
    even = np.log(np.arange(1, 7)).mean()
    assert np.mean(heads[0]) < even - 0.05 and np.mean(heads[1]) == pytest.approx(even, abs=1e-2)


def test_a_sparse_layer_counts_once_by_the_map_that_is_the_mean_of_its_branches() -> None:
    block = BlockConfig("sparse_gqa", d_model=32, n_heads=4, n_kv_heads=2, d_ff=32, position="rope", window_size=3)
    block = dataclasses.replace(block, sparse_compress_ratio=2, sparse_select_k=1)
    model = LanguageModel(ModelConfig(block, vocab_size=32, n_layers=1))
    maps = extract_attention_maps(model, TOKENS)
    heads = row_entropy(maps["layer_0"]).mean(axis=(0, 2))
    assert len(maps) == 4
    found = told(AttentionEntropyCallback(model, TOKENS, eval_interval=1), 1)
    assert found["exp_attn_entropy_mean"] == pytest.approx(float(heads.mean()), rel=1e-5)


def test_a_model_without_softmax_attention_has_no_entropy_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    callback = AttentionEntropyCallback(LanguageModel(FAMILIES["mamba2"].tiny()), TOKENS, eval_interval=1)
    with caplog.at_level(logging.WARNING):
        assert told(callback, 1) == told(callback, 2) == {}
    assert len(caplog.records) == 1 and "recurrent state" in caplog.text


def test_the_unsteadiness_of_the_gradient_norm() -> None:
    callback = LossCurvatureCallback(window_size=3)
    norms = [1.0, 3.0, 2.0, 7.0]
    found = [told(callback, i + 1, grad_norm=norm) for i, norm in enumerate(norms)]
    assert found[0] == {}
    for i in (1, 2, 3):
        window = np.array(norms[max(0, i - 2) : i + 1])
        assert found[i] == pytest.approx({"exp_grad_noise_scale": window.std() / window.mean()})
    assert told(callback, 9) == {}  # a step without a gradient norm


def test_effective_rank_is_known_for_known_spectra() -> None:
    assert effective_rank(mx.eye(6) * 3) == pytest.approx(6, rel=1e-5)
    assert effective_rank(mx.outer(mx.arange(1.0, 5.0), mx.arange(1.0, 9.0))) == pytest.approx(1, abs=1e-3)
    p = np.array([0.5, 0.25, 0.25])
    matrix = mx.array(np.diag([2.0, 1.0, 1.0]).astype(np.float32))
    assert effective_rank(matrix) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert effective_rank(mx.zeros((4, 4))) == 0.0


def test_effective_rank_counts_matrices_with_sides_of_at_least_4() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.square, self.narrow, self.vector, self.stack = mx.eye(4), mx.eye(3), mx.ones(9), mx.ones((4, 4, 4))
            self.wide = mx.concatenate([mx.eye(8), mx.eye(8)], axis=1)

    callback = EffectiveRankCallback(Parts(), eval_interval=2)
    assert told(callback, 1) == {}
    assert told(callback, 2) == pytest.approx({"exp_effective_rank_mean": (4 + 8) / 2}, rel=1e-4)


def all_of_them(model: Any) -> list[Any]:
    gradients = GradientStatsCallback(model, next_token, log_interval=2)
    gradients.set_probe_batch(batch(50))
    return [
        gradients,
        WeightStatsCallback(model, log_interval=2),
        LossCurvatureCallback(window_size=4),
        EffectiveRankCallback(model, eval_interval=2),
        GradientNoiseScaleCallback(model, next_token, batch(51), eval_interval=2),
    ]


@pytest.mark.parametrize("compiled", [True, False])
def test_looking_does_not_change_the_run(compiled: bool) -> None:
    histories = []
    for look in (True, False):
        model = tiny_model(dropout=0.3)
        mx.random.seed(1)
        trainer = Trainer(
            model, tiny_config(compile_step=compiled, max_steps=6), callbacks=all_of_them(model) if look else []
        )
        histories.append(trainer.train(Cursor()))
    keys = [{key for key in metrics if key.startswith("exp_")} for metrics in histories[0]]
    assert len(keys[0]) == 0 and len(keys[1]) == 8
    plain = [{k: v for k, v in metrics.items() if not k.startswith("exp_")} for metrics in histories[0]]
    assert plain == histories[1]


def test_a_resumed_run_tells_the_same(tmp_path) -> None:
    def trainer(stop: int) -> Trainer:
        model = tiny_model()
        return Trainer(model, tiny_config(max_steps=stop, lr_schedule="constant"), callbacks=all_of_them(model))

    expected = trainer(8).train(Cursor())
    first = trainer(4)
    data = Cursor()
    first.train(data)
    first.save(tmp_path / "c")
    second = trainer(8)
    second.restore(tmp_path / "c", ignore=["max_steps"])
    assert second.train(Cursor()) == expected[4:]
