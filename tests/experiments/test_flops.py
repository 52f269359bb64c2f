"""FLOPs by formula against the matrix products counted in the traced graph of the model itself."""

import dataclasses
import math
from collections.abc import Callable

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from lmxlab.core import delta_rule, kernels
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.experiments.flops import estimate_flops_per_step, estimate_flops_per_token
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.models.mtp import head_states, mtp_logits

BLOCK = BlockConfig(d_model=48, n_heads=4, d_ff=80, max_seq_len=24)


@pytest.fixture(autouse=True)
def _plain_operations(monkeypatch):
    """MLX's own operations: the graph of the CPU kernels cannot be exported, and their sums are products too.

    Nor can operations with a gradient of their own: their forward passes stand in for them.
    """
    monkeypatch.setattr(kernels.switch, "_exact", True)
    monkeypatch.setattr(delta_rule, "unstack", list)
    monkeypatch.setattr(delta_rule, "unit_lower_inverse", delta_rule._inverse)


def counted_flops(fn: Callable[..., mx.array], *args: mx.array) -> int:
    """2 FLOPs per multiply-add of every matrix product in the graph that MLX traces of fn(*args)."""
    total = 0

    def count(event: dict) -> None:
        nonlocal total
        if event["type"] != "primitive":
            return
        name, (first, *rest) = event["name"], [shape for _, shape, _ in event["inputs"]] or [()]
        output = event["outputs"][0][1]
        if name in ("Matmul", "AddMM", "GatherMM"):
            total += 2 * math.prod(output) * first[-1]
        elif name == "ScaledDotProductAttention":
            key, value = rest[:2]
            total += 2 * math.prod(first[:-1]) * key[-2] * (first[-1] + value[-1])
        else:
            assert not any(word in name for word in ("MM", "Matmul", "Attention", "Conv")), f"{name} is not counted"

    mx.export_function(count, fn, *args)
    return total


def gap(config: ModelConfig, batch_size: int = 2, seq_len: int | None = None) -> float:
    """Relative difference between the formula and the count."""
    model = LanguageModel(config)
    model.eval()
    length = seq_len or config.block.max_seq_len
    tokens = mx.zeros((batch_size, length), dtype=mx.int32)
    counted = counted_flops(lambda x: model(x)[0], tokens)
    assert counted > 0
    return estimate_flops_per_token(config, seq_len) * batch_size * length / counted - 1


def test_the_counter_counts_products_with_and_without_bias_and_fused_attention():
    x, w, b = mx.zeros((2, 3, 5)), mx.zeros((5, 7)), mx.zeros((7,))
    assert counted_flops(lambda x: x @ w, x) == 2 * 2 * 3 * 5 * 7
    assert counted_flops(lambda x: mx.addmm(b, x, w), x) == 2 * 2 * 3 * 5 * 7
    assert counted_flops(mx.compile(lambda x: mx.exp(x @ w) * 2), x) == 2 * 2 * 3 * 5 * 7
    assert counted_flops(lambda x: mx.exp(x) + 1, x) == 0
    q, k, v = mx.zeros((2, 4, 6, 8)), mx.zeros((2, 2, 9, 8)), mx.zeros((2, 2, 9, 8))
    attention = lambda q: mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0)  # noqa: E731
    assert counted_flops(attention, q) == 2 * 2 * 4 * 6 * 9 * (8 + 8)


def test_a_dense_model_by_hand():
    config = ModelConfig(
        block=dataclasses.replace(BLOCK, attention="gqa", n_kv_heads=2, ffn="gated"), vocab_size=65, n_layers=3
    )
    projections = 2 * 48 * (48 + 24 + 24 + 48)  # q, k, v, o
    attention = 2 * 24 * 48 + 2 * 24 * 48  # scores and values, at 24 positions
    feed_forward = 2 * 3 * 48 * 80
    assert estimate_flops_per_token(config) == 3 * (projections + attention + feed_forward) + 2 * 48 * 65


MAMBA2 = {"mamba_head_dim": 24, "ssm_state_size": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
MAMBA3 = {"mamba_trapezoidal": True, "mamba_bc_norm": True, "mamba_complex_a": True}
VARIANTS = {
    "mha": {},
    "mha ignores n_kv_heads": {"n_kv_heads": 2},
    "gqa": {"attention": "gqa", "n_kv_heads": 2},
    "multi-query": {"attention": "gqa", "n_kv_heads": 1},
    "gqa, all heads": {"attention": "gqa"},
    "qk_norm": {"attention": "gqa", "n_kv_heads": 2, "qk_norm": True},
    "wide heads": {"attention": "gqa", "n_kv_heads": 2, "head_dim": 20},
    "narrow heads": {"head_dim": 6},
    "gated": {"ffn": "gated"},
    "relu2": {"ffn": "relu2"},
    "gated relu2": {"ffn": "gated_relu2"},
    "no attention": {"attention": "none"},
    "no ffn": {"ffn": "none"},
    "sparse": {
        **{"attention": "sparse_gqa", "n_kv_heads": 2, "sparse_compress_ratio": 5},
        **{"sparse_select_k": 2, "window_size": 4},
    },
    "output gate": {"attention": "gqa", "n_kv_heads": 2, "output_gate": True},
    "learned positions": {"position": "learned"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "mamba1": {"attention": "mamba1", "position": "none", "ssm_state_size": 8, "max_seq_len": 25},  # 5 chunks of 5
    "mamba2": {"attention": "mamba2", "position": "none", **MAMBA2},
    "mamba2, an incomplete chunk": {"attention": "mamba2", "position": "none", **MAMBA2, "mamba_chunk_size": 9},
    "mamba3": {"attention": "mamba3", "position": "none", **MAMBA2, **MAMBA3},
    "mamba3, trapezoidal": {"attention": "mamba3", "position": "none", **MAMBA2, "mamba_trapezoidal": True},
    "attention beside mamba2": {"attention": "gqa_mamba2", "n_kv_heads": 2, "position": "rope", **MAMBA2},
    "rms norm, no bias": {"norm": "rms_norm", "bias": False},
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_formula_is_the_count_for_every_component(options, tied):
    block = dataclasses.replace(BLOCK, **options)
    assert gap(ModelConfig(block=block, vocab_size=65, n_layers=2, tie_embeddings=tied)) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_within_two_percent_of_the_count(family):
    config = FAMILIES[family].tiny()
    assert abs(gap(config, seq_len=32)) <= 0.02


@pytest.mark.parametrize("seq_len", [1, 4, 5, 16, 63, 65, 130])
def test_the_delta_rule_is_counted_in_the_form_and_the_chunks_that_are_run(seq_len):
    grouped = {"linear_n_key_heads": 2, "linear_n_value_heads": 6, "linear_key_head_dim": 10}
    for options in ({"use_short_conv": True}, grouped):
        block = dataclasses.replace(BLOCK, attention="gated_deltanet", **options)
        assert gap(ModelConfig(block=block, vocab_size=65, n_layers=2), seq_len=seq_len) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seq_len", [1, 5, 24])
def test_attention_is_counted_at_the_length_that_is_run(seq_len):
    config = ModelConfig(block=BLOCK, vocab_size=65, n_layers=2)
    assert gap(config, seq_len=seq_len) == 0.0
    assert estimate_flops_per_token(config, seq_len) <= estimate_flops_per_token(config)


def test_layers_that_differ_are_counted_each_as_it_is():
    blocks = (BLOCK, dataclasses.replace(BLOCK, attention="none", ffn="gated"), dataclasses.replace(BLOCK, d_ff=8))
    assert gap(ModelConfig(block=BLOCK, vocab_size=65, n_layers=3, block_configs=blocks)) == 0.0


def test_a_step_is_three_forward_passes_of_its_tokens_for_a_config_and_for_a_model():
    config = ModelConfig(block=BLOCK, vocab_size=65, n_layers=2)
    expected = estimate_flops_per_token(config) * 3 * 8 * 4
    assert estimate_flops_per_step(model_config=config, batch_size=4, seq_len=8) == expected
    assert estimate_flops_per_step(LanguageModel(config), batch_size=4, seq_len=8) == expected
    at_length = estimate_flops_per_step(config, batch_size=4, seq_len=8, attention_len=8)
    assert at_length == estimate_flops_per_token(config, seq_len=8) * 3 * 8 * 4 < expected


def test_a_step_costs_what_its_forward_and_backward_graph_does():
    config = ModelConfig(block=BLOCK, vocab_size=65, n_layers=2)
    model = LanguageModel(config)
    model.eval()  # nothing computed again for the backward pass: that MLX cannot export
    tokens = mx.zeros((2, 24), dtype=mx.int32)

    names, values = zip(*tree_flatten(model.parameters()), strict=True)

    def gradients(x, *values):
        def loss(parameters):
            model.update(parameters)
            return model(x)[0].sum()

        value, gradient = mx.value_and_grad(loss)(tree_unflatten(list(zip(names, values, strict=True))))
        return [value, *(array for _, array in tree_flatten(gradient))]

    counted = counted_flops(gradients, tokens, *values)
    assert estimate_flops_per_step(config, batch_size=2, seq_len=24) == counted


@pytest.mark.parametrize("field", ["attention", "ffn"])
def test_an_unknown_component_is_an_error_and_not_free(field, monkeypatch):
    block = dataclasses.replace(BLOCK)
    object.__setattr__(block, field, "warp_drive")  # the config would refuse it by itself
    config = ModelConfig(vocab_size=65, n_layers=1)
    object.__setattr__(config, "block", block)
    with pytest.raises(UserError, match=f"The {field} registry has no key 'warp_drive'"):
        estimate_flops_per_token(config)


@pytest.mark.parametrize("seq_len", [1, 2, 24])
def test_prediction_heads_are_counted_on_the_positions_that_they_run_on(seq_len):
    config = ModelConfig(block=dataclasses.replace(BLOCK, ffn="gated"), vocab_size=65, n_layers=1, mtp_n_predict=2)
    model = LanguageModel(config)
    model.eval()

    def forward(x):
        hidden = model.hidden_states(x)[0]
        states = head_states(model, model.mtp_heads, hidden, x)
        return [model.logits(hidden), *(mtp_logits(model, s) for s in states)]

    counted = counted_flops(forward, mx.zeros((2, seq_len), dtype=mx.int32))
    assert estimate_flops_per_token(config, seq_len) * 2 * seq_len == pytest.approx(counted, rel=1e-4)
