import dataclasses
import json
import tomllib
from typing import Any

import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UnknownNameError


def test_defaults_are_those_of_the_api() -> None:
    block = BlockConfig()
    assert (block.attention, block.ffn, block.norm, block.position) == ("mha", "standard", "layer_norm", "sinusoidal")
    assert (block.d_model, block.n_heads, block.n_kv_heads, block.d_ff, block.bias) == (512, 8, None, 2048, True)
    assert (block.dropout, block.norm_eps, block.rope_theta, block.max_seq_len) == (0.0, 1e-5, 10000.0, 2048)
    assert block.pre_norm and not block.mup and not block.qk_norm
    config = ModelConfig()
    assert (config.vocab_size, config.n_layers, config.tie_embeddings) == (32000, 6, True)
    assert (config.block_configs, config.mup_base_width, config.mtp_n_predict, config.mtp_lambda) == (
        None,
        None,
        0,
        0.1,
    )


def test_configs_are_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BlockConfig().d_model = 1  # type: ignore[misc]
    assert hash(ModelConfig()) == hash(ModelConfig())


def test_head_dim_follows_the_width_unless_it_was_given() -> None:
    block = BlockConfig(d_model=64, n_heads=4)
    assert block.head_dim == 16
    assert dataclasses.replace(block, d_model=128).head_dim == 32
    assert dataclasses.replace(dataclasses.replace(block, d_model=128), n_heads=8).head_dim == 16
    fixed = BlockConfig(d_model=64, n_heads=4, head_dim=24)
    assert dataclasses.replace(fixed, d_model=128).head_dim == 24
    assert BlockConfig(d_model=66, n_heads=4, head_dim=16).head_dim == 16


def test_effective_kv_heads() -> None:
    assert BlockConfig().effective_n_kv_heads == 8
    assert BlockConfig(attention="gqa", n_kv_heads=2).effective_n_kv_heads == 2


def test_a_layer_gets_the_block_itself_or_its_override() -> None:
    block, other = BlockConfig(), BlockConfig(dropout=0.1)
    config = ModelConfig(block, n_layers=2)
    assert config.get_block_config(0) is config.get_block_config(1) is block
    mixed = ModelConfig(block, n_layers=2, block_configs=(other, block))
    assert mixed.get_block_config(0) is other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 0}, "d_model is 0; it must be at least 1"),
        ({"d_model": -64}, "d_model is -64"),
        ({"d_model": "64"}, "d_model is '64'; it must be an integer"),
        ({"d_model": 64.0}, "d_model is 64.0; it must be an integer"),
        ({"n_heads": 7}, "d_model 512 is not divisible by n_heads 7"),
        ({"attention": "gqa", "n_kv_heads": 3}, "n_heads 8 is not divisible by n_kv_heads 3"),
        ({"n_kv_heads": 0}, "n_kv_heads is 0"),
        ({"d_ff": 0}, "d_ff is 0"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"bias": "yes"}, "bias is 'yes'; it must be true or false"),
        ({"attention": None}, "attention is None; it must be a name"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"norm_placement": "before"}, "Unknown norm_placement 'before'"),
        ({"qk_norm_joint": True}, "qk_norm_joint would be ignored"),
        ({"norm_plus_one": True}, "norm_plus_one would be ignored: norm is 'layer_norm'"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0.0; it must be above 0"),
        ({"ffn": "gated", "activation": "gelu"}, "Unknown activation of the 'gated' FFN 'gelu'"),
        ({"ffn": "relu2", "activation": "silu"}, "activation 'silu' would be ignored: ffn is 'relu2'"),
        ({"window_size": 4}, "window_size 4 would be ignored: attention 'mha'"),
        ({"attention": "gqa", "kv_lora_rank": 4}, "kv_lora_rank 4 would be ignored: attention 'gqa'"),
        ({"n_experts": 4}, "n_experts 4 would be ignored: ffn 'standard'"),
        ({"position": "rope", "d_model": 24, "n_heads": 8}, "head_dim is 3; .* must be even"),
        ({"d_model": 33, "n_heads": 1}, "d_model is 33; sinusoidal positions"),
        ({"rope_scaling": RopeScaling("linear", 2.0)}, "rope_scaling would be ignored"),
        ({"qk_l2_norm": True}, "qk_l2_norm would be ignored: position is 'sinusoidal'"),
        ({"attention": "mla", "qk_norm": True}, "qk_norm True would be ignored: attention 'mla'"),
        ({"attention": "gated_deltanet", "attention_softcap": 9.0}, "attention_softcap 9.0 would be ignored"),
        ({"attention": "mamba2", "attention_scale": 0.5}, "attention_scale 0.5 would be ignored"),
        (
            {"attention": "mamba1", "mamba_options": MambaOptions(norm="before_gate")},
            "mamba_options.norm 'before_gate' would be ignored: attention 'mamba1'",
        ),
        ({"attention": "mamba2", "mamba_options": MambaOptions(dt_rank=4)}, "mamba_options.dt_rank 4 would be ignored"),
        ({"attention": "mamba2", "position": "alibi"}, "position 'alibi' would be ignored: attention 'mamba2'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 would be ignored: position is 'sinusoidal'"),
        ({"attention": "mla", "temperature_floor": 4}, "temperature_floor 4 would be ignored: attention 'mla'"),
        ({"window_size": 0}, "window_size is 0"),
    ],
)
def test_a_block_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"n_layers": 2, "block_configs": (BlockConfig(),)}, "block_configs has 1 entries, n_layers is 2"),
        ({"n_layers": 1, "block_configs": (BlockConfig(d_model=64),)}, r"block_configs\[0\].d_model is 64"),
        ({"mup_base_width": 0}, "mup_base_width is 0"),
        ({"mtp_n_predict": -1}, "mtp_n_predict is -1"),
        ({"embed_scale": 0.0}, "embed_scale is 0.0"),
    ],
)
def test_a_model_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "ntk"}, "Unknown rope scaling 'ntk'"),
        ({"kind": "linear", "factor": 0.5}, "factor is 0.5"),
        ({"kind": "yarn", "factor": 2.0}, "needs original_max_seq_len"),
        (
            {"kind": "llama3", "factor": 2.0, "original_max_seq_len": 8, "low_freq_factor": 5.0},
            "low_freq_factor <= high_freq_factor",
        ),
    ],
)
def test_a_rope_scaling_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RopeScaling(**fields)


def test_mha_ignores_kv_heads() -> None:
    assert BlockConfig(attention="mha", n_kv_heads=3).n_kv_heads == 3


def test_width_mult() -> None:
    assert ModelConfig(BlockConfig(d_model=64), mup_base_width=16).width_mult == 4.0
    assert ModelConfig().width_mult == 1.0


def test_configs_survive_json_and_toml() -> None:
    scaled = BlockConfig(
        attention="gqa",
        position="rope",
        n_kv_heads=2,
        head_dim=16,
        rope_scaling=RopeScaling("llama3", 8.0, original_max_seq_len=64),
    )
    config = ModelConfig(scaled, n_layers=2, block_configs=(scaled, BlockConfig(ffn="gated")), mup_base_width=64)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    again = ModelConfig.from_dict(ModelConfig(BlockConfig(d_model=64)).to_dict())
    assert dataclasses.replace(again.block, d_model=128).head_dim == 16
    assert ModelConfig.from_dict(tomllib.loads("n_layers = 3\n[block]\nd_model = 64\ndropout = 0")).n_layers == 3


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    for data in ({"n_layer": 2}, {"block": {"n_layer": 2}}):
        with pytest.raises(UnknownNameError, match="Unknown config key 'n_layer'"):
            ModelConfig.from_dict(data)
    with pytest.raises(UnknownNameError, match="did you mean 'd_model'"):
        ModelConfig.from_dict({"block": {"d_mode": 2}})
    with pytest.raises(UnknownNameError, match="did you mean 'factor'"):
        ModelConfig.from_dict({"block": {"position": "rope", "rope_scaling": {"kind": "linear", "facto": 2.0}}})
