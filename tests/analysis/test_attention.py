"""Attention maps are the weights that the layers use: against transformers, against the layers' own outputs, by law."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import extract_attention_maps
from lmxlab.analysis.activations import ActivationCapture
from lmxlab.analysis.attention import RECURRENT, row_entropy
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.taps import reading, watching
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.families import FAMILIES

from . import attention_reference

LLAMA = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
LLAMA4 = LLAMA | {"head_dim": 8, "intermediate_size_mlp": 40, "num_local_experts": 2, "num_experts_per_tok": 1}
LLAMA4 |= {"attention_chunk_size": 8, "no_rope_layers": [1, 0], "floor_scale": 4, "attn_scale": 0.5}
GEMMA = LLAMA | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}
LATENT = LLAMA | {"kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
LATENT |= {"num_key_value_heads": 4, "first_k_dense_replace": 2, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}),
    "llama": ("llama", LLAMA),
    "mistral, window": ("mistral", LLAMA | {"sliding_window": 8}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 16}),
    "gemma2, capped": ("gemma2", GEMMA | {"attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", GEMMA | {"layer_types": ["sliding_attention", "full_attention"]}),
    "llama4, chunks, a layer with temperature": ("llama4_text", LLAMA4),
    "falcon_h1": ("falcon_h1", LLAMA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}),
    "deepseek_v3": ("deepseek_v3", LATENT | {"q_lora_rank": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}
KINDS: dict[str, BlockConfig] = {
    "mha": BlockConfig(d_model=32, n_heads=4, d_ff=32),
    "post norm, alibi": BlockConfig(d_model=32, n_heads=4, d_ff=32, position="alibi", pre_norm=False),
    "mup": BlockConfig(d_model=32, n_heads=4, d_ff=32, mup=True),
    "capped": BlockConfig(d_model=32, n_heads=4, d_ff=32, attention_softcap=0.3),
    "qk norm": BlockConfig("gqa", d_model=32, n_heads=4, n_kv_heads=2, d_ff=32, position="rope", qk_norm=True),
    "window": BlockConfig("sliding_window_gqa", d_model=32, n_heads=4, d_ff=32, position="rope", window_size=3),
    "window, alibi": BlockConfig("sliding_window_gqa", d_model=32, n_heads=4, d_ff=32, position="alibi", window_size=3),
    "chunk": BlockConfig("chunked_gqa", d_model=32, n_heads=4, d_ff=32, position="rope", attention_chunk_size=4),
    "mla, alibi": BlockConfig("mla", d_model=32, n_heads=4, d_ff=32, position="alibi", kv_lora_rank=8),
}
TOKENS = mx.random.randint(0, 50, (2, 10), key=mx.random.key(1))


def model_of(block: BlockConfig) -> LanguageModel:
    model = LanguageModel(ModelConfig(block, vocab_size=256, n_layers=2))
    for layer in model.blocks:  # larger weights: else all attention is nearly even
        layer.attention.update({k: {"weight": 8 * v["weight"]} for k, v in layer.attention.items() if k[1:] == "_proj"})
    return model


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    root = tmp_path_factory.mktemp("attention")
    folders = {case: root / str(i) for i, case in enumerate(CASES)}
    spec = root / "spec.json"
    spec.write_text(json.dumps({str(folders[case]): definition for case, definition in CASES.items()}))
    subprocess.run([sys.executable, attention_reference.__file__, str(spec)], check=True, capture_output=True)
    return folders


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_maps_equal_those_of_transformers(case: str, folders: dict[str, Path]) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    expected = np.load(folders[case] / "maps.npz")
    maps = extract_attention_maps(model, mx.array(expected["tokens"]))
    assert maps.keys() == {"layer_0", "layer_1"} == expected.keys() - {"tokens"} and not maps.skipped
    for name, map_ in maps.items():
        theirs = expected[name]
        assert np.abs(theirs[:, :, 9, :10] - 0.1).max() > 0.1  # not even
        np.testing.assert_allclose(np.array(map_), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_one_and_are_zero_where_a_query_may_not_look(kind: str) -> None:
    model = model_of(KINDS[kind])
    maps = extract_attention_maps(model, TOKENS)
    i, j = np.arange(10)[:, None], np.arange(10)
    allowed = j <= i
    if "window" in kind:
        allowed &= i - j < 3
    if kind == "chunk":
        allowed &= i // 4 == j // 4
    for map_ in maps.values():
        weights = np.array(map_)
        assert weights.shape == (2, 4, 10, 10) and weights.dtype == np.float32
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
        assert (weights[:, :, ~allowed] == 0).all()
        assert (weights[:, :, allowed] > 0).all()


@pytest.mark.parametrize("name", [*KINDS, *FAMILIES])
def test_weights_times_values_are_what_the_heads_make(name: str) -> None:
    """The maps are those of the very computation, for every softmax attention of the zoo."""
    model = model_of(KINDS[name]) if name in KINDS else LanguageModel(FAMILIES[name].tiny())
    values = []
    with ActivationCapture(model, places=("heads",)) as capture, watching(lambda scores: values.append(scores.v)):
        model(TOKENS)
    maps = extract_attention_maps(model, TOKENS)
    heads = {key.split("/")[0]: array for key, array in capture.activations.items()}
    assert maps.keys() == heads.keys() and len(values) == len(heads)
    assert maps.keys() | maps.skipped.keys() == {f"layer_{i}" for i in range(len(model.blocks))}
    for (layer, map_), v in zip(maps.items(), values, strict=True):
        v = mx.repeat(v, map_.shape[1] // v.shape[1], axis=1)
        np.testing.assert_allclose((map_ @ v).transpose(0, 2, 1, 3), heads[layer], atol=2e-5)


def test_a_layer_that_is_recurrent_or_has_no_attention_says_so() -> None:
    maps = extract_attention_maps(LanguageModel(FAMILIES["jamba"].tiny()), TOKENS)
    assert maps and maps.skipped and not maps.keys() & maps.skipped.keys()
    name, reason = next(iter(maps.skipped.items()))
    assert reason == f"layer 0 (mamba2) {RECURRENT}"
    with pytest.raises(KeyError, match=RECURRENT):
        maps[name]
    with pytest.raises(KeyError, match="there are"):
        maps["layer_99"]
    block = BlockConfig(d_model=32, n_heads=4, attention="none", d_ff=32)
    assert "has no attention branch" in extract_attention_maps(model_of(block), TOKENS).skipped["layer_0"]


def test_sparse_attention_shows_its_branches_and_their_mean() -> None:
    block = BlockConfig("sparse_gqa", d_model=32, n_heads=4, n_kv_heads=2, d_ff=32, position="rope", window_size=3)
    block = dataclasses.replace(block, sparse_compress_ratio=4, sparse_select_k=2)
    model = model_of(block)
    maps = {name: np.array(map_) for name, map_ in extract_attention_maps(model, TOKENS).items()}
    i, j = np.arange(10)[:, None], np.arange(10)
    for name in ("layer_0", "layer_0/selected", "layer_0/window"):
        np.testing.assert_allclose(maps[name].sum(-1), 1, atol=1e-6)
        assert (maps[name][:, :, j > i] == 0).all()
    assert (maps["layer_0/window"][:, :, i - j >= 3] == 0).all()
    compressed = maps["layer_0/compressed"]
    np.testing.assert_allclose(compressed.sum(-1)[:, :, 3:], 1, atol=1e-6)  # from the end of the first block on
    assert (compressed[:, :, :3] == 0).all() and (compressed[:, :, 3:7, 4:] == 0).all()
    assert (compressed[..., :4] == compressed[..., :1]).all()  # a block's tokens share its weight evenly
    short = extract_attention_maps(model, TOKENS[:, :3])  # no block has ended
    assert not short["layer_0/compressed"].any().item()
    np.testing.assert_allclose(short["layer_0"].sum(-1), 1, atol=1e-6)


def test_the_branches_of_sparse_attention_times_their_values_and_gates_are_what_the_heads_make() -> None:
    block = BlockConfig("sparse_gqa", d_model=32, n_heads=4, n_kv_heads=2, d_ff=32, position="none", window_size=3)
    model = model_of(dataclasses.replace(block, sparse_compress_ratio=4, sparse_select_k=2))
    attention, told = model.blocks[0].attention, {}
    with reading(lambda module, place, x: told.setdefault((id(module), place), x)):
        model(TOKENS)
    maps = extract_attention_maps(model, TOKENS)
    normed = model.blocks[0].attn_norm(told[id(model.blocks[0]), "input"])
    values = mx.split(attention._heads(attention.v_proj(normed), 6), 3, axis=1)
    gates, heads = (told[id(attention), place] for place in ("branch_gates", "heads"))
    branches = [maps[f"layer_0/{name}"] for name in ("compressed", "selected", "window")]
    parts = [gate * (branch @ mx.repeat(v, 2, axis=1)) for gate, branch, v in zip(gates, branches, values, strict=True)]
    np.testing.assert_allclose(sum(parts[1:], parts[0]).transpose(0, 2, 1, 3), heads, atol=2e-5)
    mean = sum((gate * branch for gate, branch in zip(gates, branches, strict=True)), mx.array(0.0))
    np.testing.assert_allclose(maps["layer_0"], mean / mean.sum(axis=-1, keepdims=True), atol=1e-6)


def test_indexed_attention_shows_only_the_tokens_that_were_chosen() -> None:
    config = FAMILIES["deepseek_v32"].tiny()
    model = LanguageModel(config)
    top_k = config.block.index_top_k
    tokens = mx.random.randint(0, 256, (1, top_k + 8))
    weights = np.array(extract_attention_maps(model, tokens)["layer_0"])
    seen = (weights > 0).sum(-1)
    assert (seen[:, :, :top_k] == np.arange(1, top_k + 1)).all()
    assert ((top_k <= seen[:, :, top_k:]) & (seen[:, :, top_k:] <= top_k + 2)).all()  # more where scores are equal


def test_dropout_is_off_and_the_training_flag_is_restored() -> None:
    model = LanguageModel(ModelConfig(BlockConfig(d_model=32, n_heads=4, d_ff=32, dropout=0.5), n_layers=2))
    model.train()
    first, second = (extract_attention_maps(model, TOKENS)["layer_1"] for _ in range(2))
    assert mx.array_equal(first, second) and model.training and model.blocks[0].training


def test_the_entropy_of_a_row() -> None:
    rows = mx.array([[1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    np.testing.assert_allclose(row_entropy(rows), [0, np.log(4)], atol=1e-6)
