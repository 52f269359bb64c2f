"""The training loop on models with adapters: only these are trained, saved and resumed; the base does not move."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.lora import apply_lora, merge_lora
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import quantize_model
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate
from lmxlab.models.llama import llama_tiny
from lmxlab.training import TrainConfig, Trainer

X = mx.random.randint(0, 256, (2, 12), key=mx.random.key(5))
BATCH = (X, mx.roll(X, -1, 1))
SHORT = (X[:1, :3], X[:1, 1:4])


def tuned(dtype: mx.Dtype = mx.float32, mode: str | None = None, **options: Any) -> LanguageModel:
    mx.random.seed(1)
    model = LanguageModel(llama_tiny())
    model.set_dtype(dtype)
    if mode is not None:
        quantize_model(model, mode=mode)
    (apply_lora if mode is None else apply_qlora)(model, 4, 8.0, ["attention", "ffn"], **options)
    mx.eval(model.parameters())
    return model


def trainer(model: LanguageModel, **settings: Any) -> Trainer:
    values = {"learning_rate": 1e-2, "warmup_steps": 1, "max_steps": 20, "weight_decay": 0.0, **settings}
    return Trainer(model, TrainConfig(**values))


def leaves(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"dora": True}, {"mode": "affine"}, {"mode": "mxfp4", "dora": True}, {"dropout": 0.1}], ids=str
)
def test_only_the_adapters_move(options: dict[str, Any], compiled: bool) -> None:
    model = tuned(**options)
    before = leaves(model.parameters())
    run = trainer(model, compile_step=compiled)
    losses = [metrics["loss"] for metrics in run.train([BATCH] * 20)]
    assert losses[-1] < losses[0] - 0.5
    after = leaves(model.parameters())
    moved = {name for name in before if not mx.array_equal(before[name], after[name])}
    assert moved == leaves(model.trainable_parameters()).keys()
    states = {name.rpartition(".")[0] for name in leaves(run.optimizer.state) if "lora_" in name}
    assert states == moved
    assert not any("weight" in name for name in leaves(run.optimizer.state))
    assert generate(model, X, max_tokens=3, temperature=0.0).shape == (2, 15)


def test_a_compiled_step_is_the_plain_one() -> None:
    runs = [trainer(tuned(dora=True), compile_step=compiled).train([BATCH] * 5) for compiled in (True, False)]
    for compiled, plain in zip(*runs, strict=True):
        assert compiled["loss"] == pytest.approx(plain["loss"], abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_float32_adapters(dtype: str) -> None:
    """Of the model alone, and of the loop's arithmetic: in both the adapters take steps that a half type would lose."""
    half = getattr(mx, dtype)
    for model, settings in ((tuned(half), {}), (tuned(), {"dtype": dtype}), (tuned(half, "affine"), {"dtype": dtype})):
        run = trainer(model, learning_rate=1e-6, lr_schedule="constant", compile_step=False, **settings)
        run.train_step(SHORT)
        before = leaves(model.trainable_parameters())
        run.train_step(SHORT)
        after = leaves(model.trainable_parameters())
        assert {array.dtype for array in after.values()} == {mx.float32}
        # B, whose gradient does not vanish with B itself.
        steps = [mx.abs(after[name] - before[name]).flatten() for name in after if name.endswith("lora_B")]
        assert 0 < mx.concatenate(steps).max() < 2e-6 and (mx.concatenate(steps) > 0).mean() > 0.9


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    whole = trainer(tuned(dropout=0.2, mode="affine"), max_steps=6)
    mx.random.seed(9)
    whole.train([BATCH] * 6)
    first = trainer(tuned(dropout=0.2, mode="affine"), max_steps=6)
    mx.random.seed(9)
    first.train([BATCH] * 3)
    first.save(tmp_path / "checkpoint")
    second = trainer(tuned(dropout=0.2, mode="affine"), max_steps=6)
    second.restore(tmp_path / "checkpoint")
    second.train([BATCH] * 3)
    ours, theirs = leaves(second.model.parameters()), leaves(whole.model.parameters())
    assert second.step == 6 and all(mx.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_tuned_model_keeps_what_it_learned_when_merged() -> None:
    model = tuned(dora=True)
    run = trainer(model)
    run.train([BATCH] * 20)
    loss = run.evaluate([BATCH])["eval_loss"]
    merge_lora(model)
    np.testing.assert_allclose(trainer(model).evaluate([BATCH])["eval_loss"], loss, atol=1e-4)
