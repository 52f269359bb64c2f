"""What a step does to the state of a model that the optimizer knows nothing of: the balance of its experts."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_lm import tiny_config

from lmxlab.core.router import expert_load, routers
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer

VOCAB = 31


def model_with_experts(**model_fields: object) -> LanguageModel:
    mx.random.seed(1)
    config = llama_config(vocab_size=VOCAB, d_model=16, n_heads=2, n_kv_heads=1, n_layers=2, d_ff=24, max_seq_len=32)
    block = dataclasses.replace(config.block, ffn="shared_moe", n_experts=4, router_balance_step=0.01)
    return LanguageModel(dataclasses.replace(config, block=block, **model_fields))


def batch(seed: int, rows: int) -> tuple[mx.array, mx.array]:
    x = mx.random.randint(0, VOCAB, (rows, 13), key=mx.random.key(seed))
    return x[:, :-1], x[:, 1:]


def biases(model: LanguageModel) -> list[list[float]]:
    return [router.balance_bias.tolist() for _, router in routers(model)]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bias_moves_once_per_step_and_stays_float32(compiled: bool, dtype: str) -> None:
    model = model_with_experts()
    trainer = Trainer(model, tiny_config(compile_step=compiled, dtype=dtype))
    for steps in range(1, 4):
        trainer.train_step(batch(steps, 4))
        for _, router in routers(model):
            assert router.balance_bias.dtype == mx.float32
            moves = mx.abs(router.balance_bias) / 0.01
            assert float(moves.max()) <= steps + 1e-3 and (steps > 1 or float(moves.max()) > 0.99)
            assert float(router.load.sum()) == pytest.approx(1)
    assert {tuple(load.shape) for load in expert_load(model).values()} == {(4,)}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_micro_batches_balance_as_their_whole_batch_does(compiled: bool, recompute: bool) -> None:
    whole, parts = (model_with_experts(gradient_checkpointing=recompute) for _ in range(2))
    x, y = batch(0, 4)
    Trainer(whole, tiny_config(compile_step=compiled)).train_step((x, y))
    micro = [(x[i : i + 1], y[i : i + 1]) for i in range(4)]
    config = tiny_config(compile_step=compiled, grad_accumulation_steps=4)
    Trainer(parts, config).train(micro)
    assert biases(parts) == biases(whole) != [[0.0] * 4] * 2
    for ours, theirs in zip(expert_load(parts).values(), expert_load(whole).values(), strict=True):
        assert mx.allclose(ours, theirs)


def test_evaluation_moves_nothing() -> None:
    model = model_with_experts()
    trainer = Trainer(model, tiny_config())
    trainer.train_step(batch(0, 4))
    before = biases(model)
    trainer.evaluate([batch(1, 4)] * 3)
    assert biases(model) == before
    trainer.train_step(batch(0, 4))
    after = [router.balance_bias for _, router in routers(model)]
    moved = max(float(mx.abs(new - mx.array(old)).max()) for old, new in zip(before, after, strict=True))
    assert 0.0099 < moved < 0.0101


def test_a_restored_run_goes_on_with_the_same_biases(tmp_path: Path) -> None:
    whole, first, second = (model_with_experts() for _ in range(3))
    batches = [batch(seed, 4) for seed in range(4)]
    straight, begun, resumed = (Trainer(model, tiny_config()) for model in (whole, first, second))
    for one in batches:
        straight.train_step(one)
    for one in batches[:2]:
        begun.train_step(one)
    begun.save(tmp_path / "c")
    resumed.restore(tmp_path / "c")
    assert biases(second) == biases(first)
    for one in batches[2:]:
        resumed.train_step(one)
    assert biases(second) == biases(whole)
    for ours, theirs in zip(tree_flatten(second.parameters()), tree_flatten(whole.parameters()), strict=True):
        assert mx.array_equal(ours[1], theirs[1]), ours[0]
