"""Models written as Hugging Face folders: nothing is lost, and transformers and mlx-lm compute the same logits."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import kernels
from lmxlab.core.config import ModelConfig
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import CONVERTERS, load_from_hf
from lmxlab.models.deepseek import deepseek_config
from lmxlab.models.export import export_model, hf_config_of
from lmxlab.models.families import FAMILIES
from lmxlab.models.gpt import gpt2_config, gpt_tiny
from lmxlab.models.llama import llama_tiny
from lmxlab.models.meaning import meaning
from lmxlab.models.mlx_lm import mlx_lm_lacks

from . import reload
from .architectures import ARCHITECTURES, LATENT, SIZE, build

LENGTH = 12
DEEPSEEK_YARN = RopeScaling("yarn", 4.0, 8, mscale=0.7, mscale_all_dim=0.7)
# What mlx-lm computes as published. It has no windows in Mistral, Qwen 2, Qwen 3 and Gemma 2, GELU by erf in Gemma, no
# untied GPT-2, no text-only Qwen 3.5 and Llama 4, no DeepSeek-V2 without yarn, one group in Mamba-2, and other logits
# for Falcon-H1 and for Jamba with experts. Sizes are chosen so that it does: GPT-2 with d_ff = 4 d_model, and Gemma 3,
# whose embedding scale sqrt(d_model) it rounds to bfloat16, 64 wide.
AS_MLX_LM = {
    *("gpt2", "llama", "llama3-scaling", "linear-scaling", "dynamic-scaling", "yarn-scaling", "qk-norm", "wide-heads"),
    *("qwen2", "qwen3", "qwen3_moe", "mixtral", "deepseek, yarn", "deepseek_v3", "olmo2", "smollm3"),
    *("gemma2, all in reach", "gemma3", "mamba"),
    *("llama, biases", "llama, untied", "nemotron", "nemotron-experts", "nemotron-wide-experts"),
    *("qwen3_next", "mamba2, one group", "deepseek_v3, tied", "nemotron, tied"),
}
# Designs of ours with a family's name that no published class computes: sinusoids; Mamba and attention in turns.
OURS = {"gpt_tiny", "gpt_10m", "gpt_30m", "gpt_small", "gpt_medium", "falcon_h1_tiny", "falcon_h1_10m"}
OURS |= {"jamba_tiny", "jamba_10m"}


def has_class(config: ModelConfig) -> bool:
    try:
        return bool(hf_config_of(config))
    except UserError:
        return False


CASES = {name: config for name, config in ARCHITECTURES.items() if has_class(config())} | {
    "gpt2": lambda: gpt2_config(**SIZE | {"d_ff": 128}),
    "gemma3": lambda: resized(ARCHITECTURES["gemma3"](), d_model=64),
    "gemma2, all in reach": lambda: resized(ARCHITECTURES["gemma2"](), window_size=LENGTH, max_seq_len=LENGTH),
    "deepseek, yarn": lambda: deepseek_config(
        **SIZE, **LATENT, n_experts=4, top_k_experts=2, moe_d_ff=24, rope_scaling=DEEPSEEK_YARN
    ),
    "llama, biases": lambda: resized(ARCHITECTURES["llama"](), bias=True),
    "mamba2, one group": lambda: resized(ARCHITECTURES["mamba2"](), mamba_n_groups=1),
    "deepseek_v3, tied": lambda: dataclasses.replace(ARCHITECTURES["deepseek_v3"](), tie_embeddings=True),
    "nemotron, tied": lambda: dataclasses.replace(ARCHITECTURES["nemotron"](), tie_embeddings=True),
    "llama, untied": lambda: dataclasses.replace(ARCHITECTURES["llama"](), tie_embeddings=False),
}


def resized(config: ModelConfig, **block: Any) -> ModelConfig:
    def change(one: Any) -> Any:
        own = {name: value for name, value in block.items() if getattr(one, name) is not None}
        return dataclasses.replace(one, **own)

    layers = config.block_configs and tuple(map(change, config.block_configs))
    scale = config.embed_scale * (block.get("d_model", config.block.d_model) / config.block.d_model) ** 0.5
    return dataclasses.replace(config, block=change(config.block), block_configs=layers, embed_scale=scale)


def leaves(model: LanguageModel) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def published() -> list[str]:
    return [name for family in FAMILIES.values() if family.hf for name in family.presets if name not in OURS]


@pytest.mark.parametrize("preset", published())
def test_every_preset_has_a_published_class(preset: str) -> None:
    family = next(family for family in FAMILIES.values() if preset in family.presets)
    converter, fields = hf_config_of(family.presets[preset]())
    assert converter is family.hf and json.loads(json.dumps(fields)) == fields


def test_every_family_has_a_case() -> None:
    assert {hf_config_of(config())[0].model_type for config in CASES.values()} == set(CONVERTERS)


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_changes_no_weight(case: str, tmp_path: Path) -> None:
    model = build(CASES[case]())
    export_model(model, tmp_path / "model", shard_bytes=20_000)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    again, config = load_from_hf(str(tmp_path / "model"), dtype=mx.float32)
    assert meaning(config) == meaning(model.config)
    before, after = leaves(model), leaves(again)
    assert before.keys() == after.keys()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    for package in ("torch", "transformers", "mlx_lm"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    root, x = tmp_path_factory.mktemp("exported"), np.random.default_rng(0).integers(0, 61, (2, LENGTH)).tolist()
    spec: dict[str, Any] = {"tokens": x, "folders": {}}
    for case, config in CASES.items():
        mx.random.seed(1)
        export_model(build(config()), root / case)
        spec["folders"][str(root / case)] = case in AS_MLX_LM
    (root / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, reload.__file__, str(root / "spec.json")], check=True, capture_output=True)
    return root, x


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_transformers_and_mlx_lm_compute_the_same_logits(
    case: str, reloaded: tuple[Path, list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.switch, "_exact", True)
    root, x = reloaded
    model, _ = load_from_hf(str(root / case), dtype=mx.float32)
    ours = np.array(model(mx.array(x))[0])
    theirs = np.load(root / case / "reloaded.npz")
    assert set(theirs) == ({"transformers", "mlx_lm"} if case in AS_MLX_LM else {"transformers"})
    for tool in theirs:
        np.testing.assert_allclose(theirs[tool], ours, atol=1e-4, rtol=0, err_msg=tool)
        assert case.startswith(("qwen35", "qwen3_next")) or np.abs(theirs[tool] - ours).max() < 2e-5, (
            tool
        )  # whose states sum up rounding
    assert ours.std() > 0.3
    again, _ = load_from_hf(str(root / case / "again"), dtype=mx.float32)
    assert all(mx.array_equal(a, b) for a, b in zip(leaves(model).values(), leaves(again).values(), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_where_mlx_lm_falls_short_is_known(case: str) -> None:
    config = CASES[case]()
    lacks = mlx_lm_lacks(config, hf_config_of(config)[0].model_type)
    assert (lacks is None) == (case in AS_MLX_LM), lacks


@pytest.mark.parametrize("name", ["gpt", "alibi", "relu2", "gated-relu2", "chunked", "mup", "mixed-layers"])
def test_what_no_published_class_computes_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No published class of transformers .* has no "):
        export_model(LanguageModel(ARCHITECTURES[name]()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_reason_is_named() -> None:
    with pytest.raises(UserError, match=r"nearest is GPT2LMHeadModel, which has no embed_scale 8.0; no position 'sin"):
        hf_config_of(gpt_tiny())


def test_a_folder_is_replaced_only_when_asked_and_only_if_it_is_a_model(tmp_path: Path) -> None:
    model, folder = LanguageModel(llama_tiny()), tmp_path / "model"
    export_model(model, folder, files={"note.txt": "first"}, tokens={"bos_token_id": 7})
    assert json.loads((folder / "config.json").read_text())["bos_token_id"] == 7
    with pytest.raises(UserError, match="exists: choose another folder"):
        export_model(model, folder)
    export_model(model, folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("precious")
    with pytest.raises(UserError, match="no exported model"):
        export_model(model, tmp_path / "mine", overwrite=True)


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OSError, match="no space"):
        export_model(LanguageModel(llama_tiny()), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    nn.quantize(model, group_size=64, bits=4)
    with pytest.raises(UserError, match="dequantize it"):
        export_model(model, tmp_path / "model")


def test_prediction_heads_stay_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build(dataclasses.replace(llama_tiny(), mtp_n_predict=2))
    with caplog.at_level("WARNING"):
        export_model(model, tmp_path / "model")
    assert "the 2 prediction heads are not exported" in caplog.text
    again, config = load_from_hf(str(tmp_path / "model"), dtype=mx.float32)
    assert config.mtp_n_predict == 0
    assert mx.array_equal(again(mx.array([[1, 2, 3]]))[0], model(mx.array([[1, 2, 3]]))[0])
