import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models.convert import config_from_hf, convert_weights

FIELDS = {"model_type": "nemotron_h", "vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}


@pytest.mark.parametrize(
    "layers",
    [
        {"hybrid_override_pattern": "M-*E"},
        {"layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"]},
        {"layers_block_type": ["mamba", "mlp", "attention", "moe"]},
    ],
    ids=["pattern", "names", "older names"],
)
def test_the_layers_are_read_in_every_spelling(layers: dict) -> None:
    config = config_from_hf(FIELDS | layers)
    kinds = [config.get_block_config(i) for i in range(4)]
    assert [(layer.attention, layer.ffn) for layer in kinds] == [
        ("mamba2", "none"),
        ("none", "relu2"),
        ("gqa", "none"),
        ("none", "shared_moe"),
    ]


def test_layers_that_are_missing_or_unknown_are_refused() -> None:
    with pytest.raises(UserError, match=r"missing required fields: \['hybrid_override_pattern'\]"):
        config_from_hf(FIELDS)
    with pytest.raises(UserError, match=r"Unsupported layers_block_type .*\['conv'\]"):
        config_from_hf(FIELDS | {"layers_block_type": ["conv"]})


def test_names_follow_the_pattern_and_values_stay() -> None:
    theirs = {
        "backbone.embeddings.weight": "embed.weight",
        "backbone.norm_f.weight": "final_norm.weight",
        "lm_head.weight": "head.weight",
        "backbone.layers.0.norm.weight": "blocks.0.attn_norm.weight",
        "backbone.layers.0.mixer.A_log": "blocks.0.attention.A_log",
        "backbone.layers.0.mixer.conv1d.weight": "blocks.0.attention.conv.weight",
        "backbone.layers.0.mixer.out_proj.weight": "blocks.0.attention.o_proj.weight",
        "backbone.layers.1.norm.weight": "blocks.1.ffn_norm.weight",
        "backbone.layers.1.mixer.gate.weight": "blocks.1.ffn.router.weight",
        "backbone.layers.1.mixer.experts.3.up_proj.weight": "blocks.1.ffn.experts.3.up.weight",
        "backbone.layers.2.mixer.o_proj.weight": "blocks.2.attention.o_proj.weight",
        "backbone.layers.3.norm.weight": "blocks.3.ffn_norm.weight",
        "backbone.layers.3.mixer.down_proj.weight": "blocks.3.ffn.down.weight",
    }
    weights = {name: mx.full((2,), i) for i, name in enumerate([*theirs, "backbone.rotary"])}
    converted = convert_weights(weights, "nemotron_h", pattern="ME*-")
    assert converted.keys() == set(theirs.values())
    assert all(mx.array_equal(converted[ours], weights[name]) for name, ours in theirs.items())
    with pytest.raises(ValueError, match="give pattern"):
        convert_weights(weights, "nemotron_h")


@pytest.mark.parametrize("fields", [{"time_step_min": 0.7}, {"time_step_limit": [0.6, 0.75]}])
def test_bounds_of_the_step_that_the_tools_read_differently_are_refused(fields: dict) -> None:
    config_from_hf(FIELDS | {"hybrid_override_pattern": "M"} | {"time_step_limit": [0.0, float("inf")]})
    with pytest.raises(UserError, match="time_step_min above 0.001"):
        config_from_hf(FIELDS | {"hybrid_override_pattern": "M"} | fields)
