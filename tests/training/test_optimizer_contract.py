"""What every optimizer keeps, in every variant: decay, types, schedule, compilation, resuming, and that it learns."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map
from optimizer_runs import constant
from tiny_lm import Cursor, tiny_config, tiny_model

from lmxlab.training import TrainConfig, Trainer, create_optimizer
from lmxlab.training.config import CAUTIOUS, OPTIMIZERS
from lmxlab.training.optimizers import learning_rates

VARIANTS: dict[str, dict[str, Any]] = {name: {"optimizer": name} for name in OPTIMIZERS}
VARIANTS |= {f"{name}, cautious": {"optimizer": name, "cautious_decay": True} for name in CAUTIOUS}
VARIANTS |= {
    f"{name}, polar express": {"optimizer": name, "muon_iteration": "polar_express"} for name in ("muon", "normuon")
}
RATES = {"lion": 1e-3, "adafactor": 3e-2, "sgd": 0.3}  # others: 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_decay_shrinks_matrices_only(variant: str) -> None:
    """With zero gradients nothing but decay moves a weight."""
    model = tiny_model()
    before = dict(tree_flatten(tree_map(mx.array, model.parameters())))
    optimizer = create_optimizer(constant(**VARIANTS[variant]))
    optimizer.update(model, tree_map(mx.zeros_like, model.trainable_parameters()))
    for path, after in tree_flatten(model.parameters()):
        factor = 1 - 1e-2 * 0.1 if path.endswith("weight") and ("up" in path or "down" in path or "head" in path) else 1
        assert mx.allclose(after, before[path] * factor, rtol=1e-6, atol=0), path


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_every_optimizer_keeps_dtypes_counts_steps_and_follows_the_schedule(variant: str, dtype: mx.Dtype) -> None:
    model = tiny_model()
    model.set_dtype(dtype)
    config = TrainConfig(**VARIANTS[variant], learning_rate=1e-2, warmup_steps=2, max_steps=4, lr_schedule="linear")
    optimizer = create_optimizer(config)
    expected = [1e-7, (1e-7 + 1e-2) / 2, 1e-2, 0.5e-2]
    for rate in expected:
        before = tree_map(mx.array, model.parameters())
        optimizer.update(model, tree_map(lambda p: mx.full(p.shape, 0.01, p.dtype), model.trainable_parameters()))
        for group in learning_rates(optimizer).values():
            assert group.item() == pytest.approx(rate, rel=1e-3)
        for (path, new), (_, old) in zip(tree_flatten(model.parameters()), tree_flatten(before), strict=True):
            assert new.dtype == dtype, path
            assert mx.isfinite(new).all(), path
            moved = mx.abs(new - old).max().item()
            if dtype == mx.float32 and rate > 1e-6:
                assert moved > 0, path  # the rate reached this parameter
            elif rate <= 1e-6:
                assert moved <= 2e-6, path
    state = tree_flatten(optimizer.state)
    steps = [value.item() for path, value in state if path.endswith("step")]
    assert steps == [4] * len(steps)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls_compiled_as_uncompiled(variant: str) -> None:
    losses = []
    for compiled in (True, False):
        rate = RATES.get(VARIANTS[variant]["optimizer"], 1e-2)
        config = tiny_config(**VARIANTS[variant], compile_step=compiled, max_steps=40, learning_rate=rate)
        losses.append([metrics["loss"] for metrics in Trainer(tiny_model(), config).train(Cursor())])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=1e-5)
    assert losses[0][-1] < 0.7 * losses[0][0]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in OPTIMIZERS])
def test_a_variant_resumes_bit_for_bit(variant: str, compiled: bool, tmp_path: Path) -> None:
    """The plain ones do in test_resume."""

    def trainer(seed: int, steps: int) -> Trainer:
        config = tiny_config(**VARIANTS[variant], compile_step=compiled, max_steps=steps, lr_schedule="constant")
        return Trainer(tiny_model(seed=seed), config)

    straight = trainer(0, 6)
    expected = straight.train(Cursor())
    first, second = trainer(0, 3), trainer(5, 6)
    first.train(Cursor())
    first.save(tmp_path / "c")
    second.restore(tmp_path / "c", ignore=["max_steps"])
    assert second.train(Cursor()) == expected[3:]
    for (path, ours), (_, theirs) in zip(
        tree_flatten(second.model.parameters()), tree_flatten(straight.model.parameters()), strict=True
    ):
        assert mx.array_equal(ours, theirs), path
