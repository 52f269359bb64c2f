"""Chained heads: what each has read, where its states stand, and what the model's output makes of them."""

import dataclasses

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.config import ModelConfig
from lmxlab.core.mtp import MTPHead
from lmxlab.models.base import LanguageModel
from lmxlab.models.deepseek import deepseek_v3_config
from lmxlab.models.generate import generate
from lmxlab.models.mtp import head_states, mtp_logits

from .architectures import ARCHITECTURES, LATENT, SIZE, build, gap, tokens

HEADS = 3
KINDS = {
    "llama": ARCHITECTURES["llama"],
    "gpt": ARCHITECTURES["gpt"],  # sinusoidal
    "window-alibi": ARCHITECTURES["window-alibi"],
    "mamba2": ARCHITECTURES["mamba2"],
    "mup": ARCHITECTURES["mup"],
    "deepseek_v3": lambda: deepseek_v3_config(**SIZE, **LATENT, n_experts=4, top_k_experts=2, moe_d_ff=24),
}


def with_heads(config: ModelConfig, n: int = HEADS) -> ModelConfig:
    return dataclasses.replace(config, mtp_n_predict=n)


def states_of(model: LanguageModel, x: mx.array) -> list[mx.array]:
    return list(head_states(model, model.mtp_heads, model.hidden_states(x)[0], x))


@pytest.mark.parametrize("kind", KINDS)
def test_no_head_sees_the_token_that_it_predicts_nor_any_after_it(kind: str) -> None:
    """The k-th head at i reads the tokens up to i + k, the last of them too, and nothing beyond."""
    model, x = build(with_heads(KINDS[kind]())), tokens(2, 12)
    model.eval()
    changed = mx.where(mx.arange(12) >= 7, (x + 1) % SIZE["vocab_size"], x)
    for k, (states, others) in enumerate(zip(states_of(model, x), states_of(model, changed), strict=True), start=1):
        assert states.shape == (2, 12 - k, 32)
        assert gap(states[:, : 7 - k], others[:, : 7 - k]) == 0
        assert float(mx.abs(states[:, 7 - k] - others[:, 7 - k]).max(axis=-1).min()) > 1e-3


def test_each_head_reads_the_states_below_it_and_the_embedding_k_tokens_on() -> None:
    model, x = build(with_heads(KINDS["llama"]())), tokens(2, 9)
    below = model.hidden_states(x)[0]
    for k, states in enumerate(states_of(model, x), start=1):
        rows = [model.embed(x[:, i + k]) for i in range(9 - k)]
        below = model.mtp_heads[k - 1](below[:, : 9 - k], mx.stack(rows, axis=1))
        assert gap(states, below) <= 1e-6


def test_a_text_too_short_for_a_head_leaves_it_out() -> None:
    model = build(with_heads(KINDS["llama"]()))
    assert [[states.shape[1] for states in states_of(model, tokens(1, n))] for n in (1, 2, 3)] == [[], [1], [2, 1]]


def test_gradient_checkpointing_changes_no_state() -> None:
    model, x = build(with_heads(KINDS["llama"]())), tokens(2, 9)
    plain = states_of(model, x)
    model.config = dataclasses.replace(model.config, gradient_checkpointing=True)
    assert max(gap(a, b) for a, b in zip(plain, states_of(model, x), strict=True)) == 0


@pytest.mark.parametrize("kind", ["llama", "mup"])
def test_it_ends_as_the_model_does(kind: str) -> None:
    model = build(with_heads(KINDS[kind]()))
    states = mx.random.normal((1, 6, 32))
    expected = model.final_norm(states) @ model.output_weight.T / model.config.width_mult
    assert gap(mtp_logits(model, states), expected) <= 1e-5


def test_heads_are_drawn_last_and_leave_the_model_as_it_is() -> None:
    plain, headed = [], []
    for config, kept in ((KINDS["llama"](), plain), (with_heads(KINDS["llama"]()), headed)):
        mx.random.seed(3)
        model = LanguageModel(config)
        kept += [model, generate(model, mx.array([[1, 2, 3]]), 5, temperature=0.0).tolist()]
    assert plain[1] == headed[1]
    extra = MTPHead(32, KINDS["llama"]().block).parameters()
    one_head = sum(array.size for _, array in tree_flatten(extra))
    assert headed[0].count_parameters() == plain[0].count_parameters() + HEADS * one_head
    ours = dict(tree_flatten(headed[0].parameters()))
    assert all(gap(array, ours[name]) == 0 for name, array in tree_flatten(plain[0].parameters()))
    proj = headed[0].mtp_heads[1].proj.weight
    assert float(mx.sqrt((proj**2).mean())) == pytest.approx(0.02, rel=0.05)
    assert gap(proj, headed[0].mtp_heads[0].proj.weight) > 0.01
