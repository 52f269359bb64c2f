"""Folders that cannot be loaded as the model that was trained are refused by name."""

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import WEIGHT_MAPS, config_from_hf, convert_weights, load_from_hf
from lmxlab.models.llama import LLAMA_LAYER, LLAMA_OUTER, llama_config

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 6}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def llama_weights(**changed: mx.array | None) -> dict[str, mx.array]:
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens": (8, 4),
        "model.norm": (4,),
        "lm_head": (8, 4),
        layer + "input_layernorm": (4,),
        layer + "post_attention_layernorm": (4,),
        **{layer + f"self_attn.{letter}_proj": (4, 4) for letter in "qkvo"},
        layer + "mlp.gate_proj": (6, 4),
        layer + "mlp.up_proj": (6, 4),
        layer + "mlp.down_proj": (4, 6),
    }
    weights: dict[str, Any] = {f"{name}.weight": mx.random.normal(shape) for name, shape in shapes.items()}
    return {name: array for name, array in (weights | changed).items() if array is not None}


def save(folder: Path, config: dict[str, Any], weights: dict[str, mx.array]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return str(folder)


def test_a_folder_loads_in_the_dtype_asked(tmp_path: Path) -> None:
    weights = llama_weights()
    folder = save(tmp_path, LLAMA, weights)
    model, config = load_from_hf(folder)
    assert model.embed.weight.dtype == mx.float16
    assert config.block.n_kv_heads == 2 and not config.tie_embeddings
    model, _ = load_from_hf(folder, dtype=mx.float32)
    assert mx.array_equal(model.head.weight, weights["lm_head.weight"])
    assert mx.array_equal(model.blocks[0].ffn.gate.weight, weights["model.layers.0.mlp.gate_proj.weight"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_can_be_quantised_on_the_way_in(bits: int, tied: bool, tmp_path: Path) -> None:
    config = llama_config(96, 64, 4, 2, 2, 128, 16, tie_embeddings=tied)
    model, x = LanguageModel(config), mx.array([[1, 2, 3, 90]])
    theirs = {ours: name for name in names_of_llama(2) if (ours := WEIGHT_MAPS["llama"](name))}
    weights = {theirs[name]: array for name, array in tree_flatten(model.parameters())}
    fields = {
        **LLAMA,
        **{"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"intermediate_size": 128, "num_hidden_layers": 2, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5},
    }
    folder = save(tmp_path, fields, weights)
    quantised, _ = load_from_hf(folder, dtype=mx.float32, quantize=bits)
    assert quantised.blocks[0].ffn.up.bits == bits and "scales" in quantised.embed
    gap = mx.abs(quantised(x)[0] - model(x)[0]).max() / mx.abs(model(x)[0]).max()
    assert 0 < gap < (0.02 if bits == 8 else 0.5)
    assert mx.isfinite(quantised.nats(x, x)).all()


def names_of_llama(n_layers: int) -> list[str]:
    return [f"{name}.weight" for name in LLAMA_OUTER] + [
        f"model.layers.{i}.{name}.weight" for i in range(n_layers) for name in LLAMA_LAYER
    ]


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA, llama_weights())
    with pytest.raises(UserError, match="bits is 7; affine has 1, 2"):
        load_from_hf(folder, quantize=7)
    with pytest.raises(UserError, match="no multiple of 64"):
        load_from_hf(folder, quantize=4)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin, which are pickles"):
        load_from_hf(str(tmp_path))


def test_a_tied_matrix_that_is_stored_twice_is_read_once(tmp_path: Path) -> None:
    weights = llama_weights()
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model, config = load_from_hf(save(tmp_path, LLAMA | {"tie_word_embeddings": True}, weights))
    assert config.tie_embeddings and "head" not in model


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.norm.weight": None}, "missing weights model.norm.weight"),
        ({"model.layers.0.self_attn.q_proj.bias": mx.zeros(4)}, "no place for: model.layers.0.self_attn.q_proj.bias"),
        ({"model.layers.1.mlp.up_proj.weight": mx.zeros((6, 4))}, "no place for: model.layers.1.mlp.up_proj.weight"),
        ({"model.layers.0.self_attn.q_norm.weight": mx.ones(2)}, "unsupported weights, .*: .*q_norm.weight"),
        ({"lm_head.weight": mx.zeros((9, 4))}, r"head.weight is \(9, 4\), its config says \(8, 4\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_from_hf(save(tmp_path, LLAMA, llama_weights(**changed)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"missing required fields: \['model_type'\]"),
        ({"model_type": "rwkv"}, "Unsupported model_type 'rwkv'"),
        ({"model_type": "llama", "vocab_size": 8}, r"missing required fields: \['hidden_size', 'intermediate_size'"),
        ({"model_type": "gpt2"}, r"missing required fields: \['vocab_size', 'n_embd', 'n_layer', 'n_head'\]"),
        (LLAMA | {"hidden_act": "gelu"}, "Unsupported value in a llama config: hidden_act = 'gelu'"),
        (LLAMA | {"sliding_window": 4}, "Unsupported field in a llama config: sliding_window = 4"),
        (LLAMA | {"clip_qkv": 8.0}, "Unsupported field in a llama config: clip_qkv = 8.0"),
        (LLAMA | {"layer_types": ["sliding_attention"]}, "Unsupported field in a llama config: layer_types"),
        (LLAMA | {"a_field_of_tomorrow": 1}, "Unsupported field in a llama config: a_field_of_tomorrow = 1"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "Unsupported rope type 'longrope'"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, r"missing required fields of rope type 'linear': \['factor'\]"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "extra": 1}}, r"rope type 'linear'.*\['extra'\]"),
        (GPT2 | {"activation_function": "relu"}, "activation_function = 'relu'; one of"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights = False"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention = True"),
    ],
)
def test_configs_that_mean_another_model_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_hf(config)


def test_config_defaults_and_nulls() -> None:
    config = config_from_hf(LLAMA | {"sliding_window": None, "head_dim": None, "rope_scaling": None})
    block = config.block
    assert (block.n_kv_heads, block.rope_theta, block.max_seq_len, block.head_dim) == (2, 10000.0, 4096, 2)
    assert not config.tie_embeddings and not block.bias
    gpt2 = config_from_hf(GPT2)
    assert (gpt2.block.d_ff, gpt2.block.activation, gpt2.block.max_seq_len) == (16, "gelu_tanh", 6)
    assert gpt2.tie_embeddings and gpt2.block.dropout == 0.0


@pytest.mark.parametrize(("kind", "theta", "eps"), [("smollm3", 2e6, 1e-6), ("mixtral", 1e6, 1e-5)])
def test_what_a_config_leaves_out_is_as_in_the_familys_class(kind: str, theta: float, eps: float) -> None:
    block = config_from_hf(LLAMA | {"model_type": kind}).block
    assert (block.rope_theta, block.norm_eps) == (theta, eps)


def test_yarn_without_a_factor_reaches_the_configs_context() -> None:
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 16}
    scaling = config_from_hf(LLAMA | {"rope_scaling": rope, "max_position_embeddings": 64}).block.rope_scaling
    assert scaling is not None and scaling.factor == 4.0


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No config.json"):
        load_from_hf(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_from_hf(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ValueError, match="No .safetensors file"):
        load_from_hf(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="header is damaged"):
        load_from_hf(str(tmp_path))


def test_a_repo_is_downloaded_by_the_hub_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="hub repos need huggingface_hub")
    folder, asked = save(tmp_path, LLAMA, llama_weights()), []

    def snapshot_download(repo_id: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        return folder

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    _, config = load_from_hf("someone/some-model", revision="v1")
    assert asked == [("someone/some-model", "v1")] and config.vocab_size == 8


def test_without_the_hub_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"lmxlab\[hf\]"):
        load_from_hf("someone/some-model")


def test_convert_weights_renames_and_drops_the_unknown() -> None:
    weights = llama_weights() | {"rotary_emb.inv_freq": mx.zeros(2)}
    converted = convert_weights(weights, "llama")
    assert len(converted) == len(weights) - 1
    assert converted["embed.weight"] is weights["model.embed_tokens.weight"]
    assert {"final_norm.weight", "head.weight", "blocks.0.attention.q_proj.weight"} <= converted.keys()
    with pytest.raises(KeyError, match=r"No weight map for 'lama'. Available: \['.*'gemma', .*'llama'"):
        convert_weights(weights, "lama")


def test_absent_means_the_familys_default_and_null_means_none() -> None:
    gemma2 = LLAMA | {"model_type": "gemma2"}
    absent = config_from_hf(gemma2)
    assert (absent.logit_softcap, absent.block.attention_softcap, absent.block.window_size) == (30.0, 50.0, 4096)
    names = ("final_logit_softcapping", "attn_logit_softcapping", "sliding_window")
    for off in (None, 0):
        config = config_from_hf(gemma2 | dict.fromkeys(names, off))
        assert config.logit_softcap is config.block.attention_softcap is config.block.window_size is None
    mistral = LLAMA | {"model_type": "mistral"}
    assert config_from_hf(mistral).block.window_size == 4096
    assert config_from_hf(mistral | {"sliding_window": None}).block.attention == "gqa"


def test_a_hub_that_cannot_be_reached_is_told_from_a_typing_mistake_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match="'nosuch' is no local folder, and the hub cannot be reached"):
        load_from_hf("nosuch")
