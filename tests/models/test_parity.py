"""Every family against the reference classes of transformers, through the folders that save_pretrained writes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core.kernels import switch
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.generate import generate, stream_generate

from . import delta_hybrids, reference, state_space

pytestmark = pytest.mark.oracle

# Largest gap of float32 logits (spread 1 to 3), with MLX's own operations and with the kernels of a CPU.
EXACT_GAP, FAST_GAP = 1e-5, 5e-5
# Gated DeltaNet brings what it finds to unit size, however small, and rounding with it: the reference's own float32 is
# up to 1.4e-5 from its float64 here.
DELTA_SLACK = 3

GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 48}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, **BANDS},
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16},
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 900.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
GEMMA3 = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": GEMMA3_ROPE,
}
QWEN3_MOE = LLAMA | {
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
DEEPSEEK = LLAMA | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
DEEPSEEK_YARN = ROPE["yarn"] | {"mscale": 0.7, "mscale_all_dim": 0.9}
DEEPSEEK_V32 = DEEPSEEK | {
    "n_group": 4,
    "topk_group": 2,
    "index_n_heads": 8,
    "index_head_dim": 12,
    "index_topk": 9,
}
LLAMA4 = LLAMA | {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "floor_scale": 4,
    "attn_scale": 0.5,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2, exact gelu, wide ffn, untied": (
        "gpt2",
        GPT2 | {"activation_function": "gelu", "n_inner": 80, "tie_word_embeddings": False},
    ),
    "llama": ("llama", LLAMA),
    "llama, as many kv heads, tied": ("llama", LLAMA | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, one kv head": ("llama", LLAMA | {"num_key_value_heads": 1}),
    "llama, own head_dim": ("llama", LLAMA | {"head_dim": 16}),
    "llama, attention bias": ("llama", LLAMA | {"attention_bias": True}),
    "llama, mlp bias, large eps": ("llama", LLAMA | {"mlp_bias": True, "rms_norm_eps": 1e-3}),
    "llama, dynamic rope beyond its context": (
        "llama",
        LLAMA | {"rope_parameters": ROPE["dynamic"], "max_position_embeddings": 16},
    ),
    "mistral, window": ("mistral", LLAMA | {"sliding_window": 8}),
    "mistral, no window": ("mistral", LLAMA | {"sliding_window": None}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2, windows in the upper layers": (
        "qwen2",
        LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3, attention bias, windows": (
        "qwen3",
        LLAMA
        | {"head_dim": 16, "attention_bias": True, "use_sliding_window": True}
        | {"sliding_window": 8, "max_window_layers": 2},
    ),
    "qwen3_moe": ("qwen3_moe", QWEN3_MOE),
    "qwen3_moe, weights not normalised, some layers dense, windows": (
        "qwen3_moe",
        QWEN3_MOE
        | {"norm_topk_prob": False, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
        | {"use_sliding_window": True, "sliding_window": 8, "attention_bias": True},
    ),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK | {"n_routed_experts": 6, "num_experts_per_tok": 3}),
    "deepseek_v2, groups, plain queries, yarn": (
        "deepseek_v2",
        DEEPSEEK
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.0}
        | {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN, "attention_bias": True},
    ),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK | {"n_group": 4, "topk_group": 2}),
    "deepseek_v32": ("deepseek_v32", DEEPSEEK_V32),
    "deepseek_v32, few tokens seen, yarn, another layer dense": (
        "deepseek_v32",
        DEEPSEEK_V32
        | {"index_topk": 4, "rope_parameters": DEEPSEEK_YARN, "mlp_layer_types": ["sparse", "dense", "sparse"]},
    ),
    "deepseek_v3, no groups, plain queries, yarn, all dense but one": (
        "deepseek_v3",
        DEEPSEEK
        | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 2}
        | {"q_lora_rank": None, "rope_parameters": DEEPSEEK_YARN},
    ),
    "llama4": ("llama4_text", LLAMA4),
    "llama4, as Scout": (
        "llama4_text",
        LLAMA4
        | {"interleave_moe_layer_step": 1, "rope_parameters": ROPE["llama3"] | {"high_freq_factor": 1.0}}
        | {"tie_word_embeddings": True, "head_dim": 16, "num_experts_per_tok": 1},
    ),
    "llama4, as Maverick": (
        "llama4_text",
        LLAMA4 | {"use_qk_norm": False, "num_experts_per_tok": 1, "attention_bias": True},
    ),
    "llama4, other layers": (
        "llama4_text",
        LLAMA4
        | {"no_rope_layers": [0, 1, 1, 0], "moe_layers": [0, 3], "attn_temperature_tuning": False}
        | {"layer_types": ["chunked_attention", "full_attention", "chunked_attention", "full_attention"]},
    ),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4}),
    "mixtral, every expert, a window": (
        "mixtral",
        LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 8},
    ),
    "olmo2": ("olmo2", LLAMA),
    "olmo2, as many kv heads": ("olmo2", LLAMA | {"num_key_value_heads": 4}),
    "smollm3": ("smollm3", LLAMA | {"num_hidden_layers": 5}),
    "smollm3, windows where nothing turns": (
        "smollm3",
        LLAMA | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 8},
    ),
    "gemma": ("gemma", LLAMA | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", LLAMA | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma2, low caps": (
        "gemma2",
        LLAMA
        | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 4}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    ),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3, linear scaling of the global layers": (
        "gemma3_text",
        GEMMA3
        | {
            "rope_parameters": GEMMA3_ROPE
            | {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0}}
        },
    ),
} | {f"llama, rope {kind}": ("llama", LLAMA | {"rope_parameters": rope}) for kind, rope in ROPE.items()}
CASES |= state_space.CASES | delta_hybrids.CASES


GREEDY = [
    *("gpt2", "llama", "llama, rope llama3", "llama, rope yarn", "mistral, window", "qwen2", "qwen3", "olmo2"),
    *("qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "deepseek_v32", "llama4", "llama4, as Scout"),
    *("smollm3", "gemma", "gemma2", "gemma3"),
    *state_space.GREEDY,
    *delta_hybrids.GREEDY,
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with model and expected results for every case."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    root = tmp_path_factory.mktemp("references")
    folders = {case: root / str(i) for i, case in enumerate(CASES)}
    spec = root / "spec.json"
    spec.write_text(json.dumps({str(folders[case]): definition for case, definition in CASES.items()}))
    subprocess.run([sys.executable, reference.__file__, str(spec)], check=True, capture_output=True)
    return folders


@pytest.fixture(params=["exact", "fast"])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Runs a test with each form of the kernels and says how near the logits must be."""
    exact = request.param == "exact"
    monkeypatch.setattr(switch, "_exact", exact)
    monkeypatch.setattr(switch, "FEWEST_ELEMENTS", 0)
    return EXACT_GAP if exact else FAST_GAP


@pytest.mark.parametrize("case", sorted(CASES))
def test_logits_equal_the_reference(case: str, tolerance: float, folders: dict[str, Path]) -> None:
    model, config = load_from_hf(str(folders[case]), dtype=mx.float32)
    expected = np.load(folders[case] / "expected.npz")
    tolerance *= state_space.SLACK if case in state_space.CASES else 1
    tolerance *= DELTA_SLACK if config.block.attention == "gated_deltanet" else 1
    for length in reference.LENGTHS:
        logits, _ = model(mx.array(expected[f"x{length}"]))
        assert expected[f"logits{length}"].std() > 0.3  # else a wrong model would be as near
        np.testing.assert_allclose(np.array(logits), expected[f"logits{length}"], atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", GREEDY)
def test_greedy_decoding_equals_the_reference(case: str, folders: dict[str, Path]) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    expected = np.load(folders[case] / "expected.npz")
    prompt = mx.array(expected["greedy"][:, :6])
    settings: dict[str, Any] = {"max_tokens": 20, "temperature": 0.0}
    assert generate(model, prompt, **settings).tolist() == expected["greedy"].tolist()
    assert list(stream_generate(model, prompt[:1], **settings)) == expected["greedy"][0, 6:].tolist()
    assert expected["penalised"].tolist() != expected["greedy"].tolist()
    penalised = generate(model, prompt, repetition_penalty=1.7, **settings)
    assert penalised.tolist() == expected["penalised"].tolist()


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_the_older_config_layout_means_the_same_model(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders[f"llama, rope {kind}"]
    fields = json.loads((folder / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields["rope_theta"] = rope.pop("rope_theta")
    if kind != "default":
        fields["rope_scaling"] = rope | {"type": rope.pop("rope_type")}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    _, config = load_from_hf(str(tmp_path), dtype=mx.float32)
    assert config == load_from_hf(str(folder))[1]


def test_shards_and_old_buffers_load(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = mx.load(str(folders["gpt2"] / "model.safetensors"))
    assert isinstance(weights, dict)
    weights |= {"h.0.attn.bias": mx.ones((1, 1, 48, 48)), "h.0.attn.masked_bias": mx.array(-1e4)}
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(weights))}
    for shard in set(weight_map.values()):
        held = {name: weights[name] for name, file in weight_map.items() if file == shard}
        mx.save_safetensors(str(tmp_path / shard), held)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    model, _ = load_from_hf(str(tmp_path), dtype=mx.float32)
    expected = np.load(folders["gpt2"] / "expected.npz")
    np.testing.assert_allclose(
        np.array(model(mx.array(expected["x12"]))[0]), expected["logits12"], atol=FAST_GAP, rtol=0
    )


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_checkpoint_that_is_written_again_has_the_same_names_and_values(
    case: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model, _ = load_from_hf(str(folders[case]), dtype=mx.float32)
    export_model(model, tmp_path / "again")
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (folders[case], tmp_path / "again"))
    assert isinstance(before, dict) and isinstance(after, dict)
    before = {name.removeprefix("transformer."): array for name, array in before.items()}  # GPT-2's hub files have none
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
