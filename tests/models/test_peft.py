"""Adapters that peft saved give the logits and the gradients that they have there, and others are refused."""

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
from lmxlab.core.adapters import adapters_of
from lmxlab.core.lora import load_lora_adapters, merge_lora, save_lora_adapters
from lmxlab.core.quantize import quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.llama import llama_config, llama_tiny
from lmxlab.models.peft import load_peft_adapters

from . import peft_reference

X = mx.array([[1, 2, 3, 4]])


@pytest.fixture
def exact() -> Any:
    kernels.exact(True)
    yield
    kernels.exact(False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models and adapters of every case."""
    for package in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    root = tmp_path_factory.mktemp("peft")
    subprocess.run([sys.executable, peft_reference.__file__, str(root)], check=True, capture_output=True)
    return root


@pytest.mark.oracle
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("case", peft_reference.CASES)
def test_logits_and_gradients_are_those_of_peft(case: str, folder: Path, tmp_path: Path) -> None:
    model, _ = load_from_hf(str(folder / case), dtype=mx.float32)
    expected = np.load(folder / case / "expected.npz")
    x = mx.array(expected["x"])
    base = model(x)[0]
    load_peft_adapters(folder / case / "adapter", model)
    assert np.abs(np.array(base) - expected["logits"]).max() > 0.1  # without the adapter it is another model
    np.testing.assert_allclose(np.array(model(x)[0]), expected["logits"], atol=1e-5)

    loss, tree = nn.value_and_grad(model, lambda x: model.nats(x[:, :-1], x[:, 1:]).mean())(x)
    assert float(loss) == pytest.approx(float(expected["loss"]), abs=1e-5)
    ours = {name: np.array(gradient) for name, gradient in tree_flatten(tree)}
    theirs = {name.removeprefix("gradient "): expected[name] for name in expected.files if name.startswith("gradient ")}
    pairs = gradients_in_pairs(theirs, ours)
    assert len(pairs) == len(theirs)
    for name, (their, our) in pairs.items():
        np.testing.assert_allclose(our, their, atol=1e-5, err_msg=name)

    save_lora_adapters(tmp_path, model)  # in our layout
    again, _ = load_from_hf(str(folder / case), dtype=mx.float32)
    load_lora_adapters(tmp_path, again)
    np.testing.assert_allclose(np.array(again(x)[0]), expected["logits"], atol=1e-5)
    merge_lora(again)
    assert not adapters_of(again)
    np.testing.assert_allclose(np.array(again(x)[0]), expected["logits"], atol=2e-5)


def gradients_in_pairs(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(theirs, ours) in the layout of theirs; where one of theirs is three of ours, A's gradients add up."""
    names = {"self_attn.": "attention.", "mlp.gate_proj": "ffn.gate", "mlp.up_proj": "ffn.up"}
    names |= {"mlp.down_proj": "ffn.down", "model.layers.": "blocks.", "lm_head": "head", "transformer.h.": "blocks."}
    names |= {"attn.c_proj": "attention.o_proj", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
    pairs = {}
    for name, their in theirs.items():
        path = name.removeprefix("base_model.model.").removesuffix(".weight").replace("magnitude_vector", "magnitude")
        for old, new in names.items():
            path = path.replace(old, new)
        if "attn.c_attn" not in path:
            pairs[name] = (their, ours[path].T)
            continue
        parts = [ours[path.replace("attn.c_attn", f"attention.{letter}_proj")].T for letter in "qkv"]
        pairs[name] = (their, sum(parts) if "lora_A" in path else np.concatenate(parts))
    return pairs


def save(folder: Path, model: LanguageModel, layers: dict[str, int], **fields: Any) -> Path:
    """An adapter as peft writes it: rank 2 over {their module: our layer's index}."""
    arrays = {}
    for name, width in layers.items():
        arrays[f"base_model.model.{name}.lora_A.weight"] = mx.random.normal((2, 64))
        arrays[f"base_model.model.{name}.lora_B.weight"] = mx.random.normal((width, 2))
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), arrays)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.25, **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


Q1 = {"model.layers.1.self_attn.q_proj": 64}


@pytest.mark.parametrize("quantised", [False, True])
def test_only_the_layers_of_the_file_get_an_adapter(quantised: bool, tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    if quantised:
        quantize_model(model)
    config = load_peft_adapters(save(tmp_path, model, Q1), model)
    assert config["lora_alpha"] == 4
    assert list(adapters_of(model)) == ["blocks.1.attention.q_proj"]
    layer = model.blocks[1].attention.q_proj
    assert (layer.rank, layer.scaling, layer.dropout, layer.lora_A.shape) == (2, 2.0, 0.25, (64, 2))
    assert sorted(name for name, _ in tree_flatten(model.trainable_parameters())) == [
        "blocks.1.attention.q_proj.lora_A",
        "blocks.1.attention.q_proj.lora_B",
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'; only 'LORA' is built"),
        ({"modules_to_save": ["lm_head"]}, r"Unsupported field in a peft config: modules_to_save = \['lm_head'\]"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow = 1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base model's weights"),
    ],
)
def test_fields_that_mean_another_computation_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    with pytest.raises(UserError, match=message):
        load_peft_adapters(save(tmp_path, model, Q1, **fields), model)
    assert not adapters_of(model)


def test_adapters_for_other_models_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    with pytest.raises(FileNotFoundError, match=r"no adapter_config.json"):
        load_peft_adapters(tmp_path, model)
    save(tmp_path, model, {"model.layers.7.self_attn.q_proj": 64})
    with pytest.raises(UserError, match=r"another model: this one has no model.layers.7.self_attn.q_proj"):
        load_peft_adapters(tmp_path, model)
    save(tmp_path, model, Q1)
    narrow = LanguageModel(llama_config(256, 32, 4, 2, 2, 128, 64))
    with pytest.raises(UserError, match=r"q_proj.lora_A is \(64, 2\), here \(32, 2\)"):
        load_peft_adapters(tmp_path, narrow)
    with pytest.raises(UserError, match="Unknown model_type 'lama'; did you mean 'llama'"):
        load_peft_adapters(tmp_path, model, "lama")
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match="truncated"):
        load_peft_adapters(tmp_path, model)
    head = {"base_model.model.lm_head.base_layer.weight": mx.ones((256, 64))}
    head |= {"base_model.model.lm_head.lora_A.weight": mx.ones((2, 64))}
    mx.save_safetensors(str(file), head | {"base_model.model.lm_head.lora_B.weight": mx.ones((256, 2))})
    with pytest.raises(UserError, match="another model: it comes with other weights of head"):
        load_peft_adapters(tmp_path, model)
    mx.save_safetensors(str(file), {"base_model.model.model.embed_tokens.lora_embedding_A": mx.ones((2, 2))})
    with pytest.raises(UserError, match="unsupported arrays in adapter_model.safetensors: .*lora_embedding_A"):
        load_peft_adapters(tmp_path, model)
