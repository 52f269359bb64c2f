"""LoRA on models: merging changes nothing, files come back, and only with the model that they belong to."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import lora
from lmxlab.core.lora import LoRALinear, apply_lora, load_lora_adapters, lora_parameters, merge_lora, save_lora_adapters
from lmxlab.core.low_rank import LoRAQuantizedLinear
from lmxlab.core.qlora import apply_qlora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_tiny

X = mx.array([[1, 2, 3, 90], [7, 7, 250, 0]])


def tuned(config: Any = None, seed: int = 0, **options: Any) -> LanguageModel:
    """A model of the same base weights every time, with adapters that do something."""
    mx.random.seed(3)
    model = LanguageModel(config or llama_tiny())
    mx.eval(model.parameters())
    apply_lora(model, **{"rank": 4, "alpha": 8.0, "targets": ["attention", "ffn"], **options})
    mx.random.seed(seed)
    for _, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            layer.lora_B = 0.2 * mx.random.normal(layer.lora_B.shape)
            if "lora_magnitude" in layer:
                layer.lora_magnitude = layer.lora_magnitude * mx.random.uniform(0.5, 1.5, layer.lora_magnitude.shape)
    return model


def names(tree: Any) -> set[str]:
    return {name.rpartition(".")[2] for name, _ in tree_flatten(tree)}


@pytest.mark.parametrize("dora", [False, True])
def test_new_adapters_change_nothing_and_are_all_that_is_trained(dora: bool) -> None:
    model = LanguageModel(gpt_tiny())
    before = model(X)[0]
    apply_lora(model, rank=4, dora=dora)
    assert isinstance(model.blocks[0].attention.q_proj, LoRALinear)
    assert type(model.blocks[0].ffn.up) is not LoRALinear  # the default is attention
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(before), atol=1e-5)
    trained = {"lora_A", "lora_B", "lora_magnitude"} if dora else {"lora_A", "lora_B"}
    assert names(lora_parameters(model)) == names(model.trainable_parameters()) == trained


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("config", [llama_tiny(), gpt_tiny()], ids=["llama", "gpt"])
def test_merging_keeps_what_the_model_computes(config: Any, dora: bool) -> None:
    model = tuned(config, dora=dora)
    before, tokens = model(X)[0], generate(model, X, max_tokens=4, temperature=0.0)
    base = LanguageModel(config)
    merge_lora(model)
    assert not any("lora" in name for name, _ in tree_flatten(model.parameters()))
    assert {name for name, _ in tree_flatten(model.parameters())} == {n for n, _ in tree_flatten(base.parameters())}
    assert tree_flatten(model.trainable_parameters()) == []  # nothing is unfrozen
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(before), atol=2e-4)
    assert generate(model, X, max_tokens=4, temperature=0.0).tolist() == tokens.tolist()


def test_merging_leaves_quantised_layers_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = LanguageModel(llama_tiny())
    quantize_model(model, 8)
    apply_qlora(model, 4)
    model.blocks[0].attention.q_proj.lora_B = mx.ones((4, 64))
    before = model(X)[0]
    with caplog.at_level(logging.WARNING):
        merge_lora(model)
    assert "dequantize_model first" in caplog.text
    assert isinstance(model.blocks[0].attention.q_proj, LoRAQuantizedLinear)
    dequantize_model(model)
    assert names(model.trainable_parameters()) == {"lora_A", "lora_B"}
    merge_lora(model)
    assert isinstance(model.blocks[0].attention.q_proj, nn.Linear)
    np.testing.assert_allclose(np.array(model(X)[0]), np.array(before), atol=1e-4)


def test_a_model_with_adapters_can_be_quantised() -> None:
    model = tuned()
    before = model(X)[0]
    quantize_model(model, 8)
    assert isinstance(model.blocks[1].ffn.gate, LoRAQuantizedLinear)
    assert names(model.trainable_parameters()) <= {"lora_A", "lora_B", "weight"}
    assert 0 < mx.abs(model(X)[0] - before).max() < 0.1 * mx.abs(before).max()


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True, "rank": 3}], ids=str)
@pytest.mark.parametrize("has_adapters", [True, False])
def test_adapters_come_back_from_their_files(has_adapters: bool, options: dict[str, Any], tmp_path: Path) -> None:
    model = tuned(**options)
    save_lora_adapters(tmp_path / "new", model, metadata={"steps": 7})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["adapter.safetensors", "adapter_config.json"]
    saved = mx.load(str(tmp_path / "new" / "adapter.safetensors"))
    assert {name.rpartition(".")[2] for name in saved} == names(model.trainable_parameters())
    other = tuned(seed=1, **options)
    assert not mx.allclose(other(X)[0], model(X)[0])
    if not has_adapters:
        other = tuned(seed=1, targets=["q_proj"])
        for _, layer in other.named_modules():
            if isinstance(layer, LoRALinear):
                layer.lora_B = mx.zeros_like(layer.lora_B)
        merge_lora(other)  # the base model
    record = load_lora_adapters(tmp_path / "new", other)
    assert (record["rank"], record["alpha"], record["steps"]) == (options.get("rank", 4), 8.0, 7)
    np.testing.assert_allclose(np.array(other(X)[0]), np.array(model(X)[0]), atol=1e-5)
    assert names(other.trainable_parameters()) == names(model.trainable_parameters())


def test_rank_and_alpha_may_be_told(tmp_path: Path) -> None:
    save_lora_adapters(str(tmp_path), tuned(), rank=4, alpha=16.0, metadata={"note": "x"})
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (record["rank"], record["alpha"], record["note"]) == (4, 16.0, "x")


def test_an_adapter_trained_over_quantised_weights_serves_the_float_model(tmp_path: Path) -> None:
    model = tuned()
    save_lora_adapters(tmp_path, model)
    quantised = LanguageModel(llama_tiny())
    quantised.update(tuned(targets=["q_proj"]).parameters(), strict=False)
    quantize_model(quantised, 8)
    load_lora_adapters(tmp_path, quantised)
    assert isinstance(quantised.blocks[0].ffn.up, LoRAQuantizedLinear)
    assert names(quantised.trainable_parameters()) == {"lora_A", "lora_B"}
    assert mx.abs(quantised(X)[0] - model(X)[0]).max() < 0.1 * mx.abs(model(X)[0]).max()


def refused(folder: Path, model: LanguageModel, message: str) -> None:
    before = dict(tree_flatten(model.parameters()))
    with pytest.raises(UserError, match=message):
        load_lora_adapters(folder, model)
    after = dict(tree_flatten(model.parameters()))
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)


def test_an_adapter_for_another_model_is_refused_by_name(tmp_path: Path) -> None:
    save_lora_adapters(tmp_path, tuned())
    config = llama_tiny()
    theta = replace(config, block=replace(config.block, rope_theta=5e5))
    refused(tmp_path, LanguageModel(theta), "for another model: block.rope_theta is 10000.0 there, 500000.0 here")
    refused(tmp_path, tuned(replace(config, n_layers=3)), "n_layers is 2 there, 3 here")
    refused(tmp_path, tuned(rank=5), r"its blocks.0.attention.k_proj.lora_A is \(64, 4\), here \(64, 5\)")
    refused(tmp_path, tuned(targets=["ffn"]), "the model has no blocks.0.attention.k_proj.lora_A")
    refused(tmp_path, tuned(dora=True), "it lacks blocks.0.attention.k_proj.lora_magnitude")
    dropout = replace(config, block=replace(config.block, dropout=0.1, max_seq_len=64))
    load_lora_adapters(tmp_path, LanguageModel(dropout))  # these are no other model


def test_without_a_config_names_and_shapes_tell_the_other_model(tmp_path: Path) -> None:
    save_lora_adapters(tmp_path, tuned())
    record = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({"rank": 4, "alpha": 8.0}))
    refused(tmp_path, LanguageModel(gpt_tiny()), "no linear layer 'blocks.0.ffn.gate'")
    config = llama_tiny()
    wide = replace(config, block=replace(config.block, d_ff=192))
    refused(tmp_path, LanguageModel(wide), r"its blocks.0.ffn.down.lora_A is \(128, 4\), here \(192, 4\)")
    model = LanguageModel(config)
    load_lora_adapters(tmp_path, model)
    assert model.blocks[0].ffn.down.scaling == record["layers"]["blocks.0.ffn.down"]["scaling"] == 2.0


def test_torn_and_missing_files_are_told(tmp_path: Path) -> None:
    model = tuned()
    with pytest.raises(FileNotFoundError, match="There is no adapter"):
        load_lora_adapters(tmp_path / "none", model)
    save_lora_adapters(tmp_path, model)
    file, config = tmp_path / "adapter.safetensors", tmp_path / "adapter_config.json"
    whole, record = file.read_bytes(), json.loads(config.read_text())
    file.write_bytes(whole[:-100])
    refused(tmp_path, model, "adapter.safetensors is torn")
    config.write_text(json.dumps({**record, "sha256": ""}))
    refused(tmp_path, model, "is torn, or no safetensors file")
    config.write_text("{")
    refused(tmp_path, model, "not valid JSON")
    config.write_text("[]")
    refused(tmp_path, model, "must hold a table")


def test_a_crash_while_saving_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned()
    save_lora_adapters(tmp_path, model)
    before = (tmp_path / "adapter.safetensors").read_bytes()

    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(lora.mx, "save_safetensors", fail)
    with pytest.raises(OSError, match="Cannot write the arrays: disk full"):
        save_lora_adapters(tmp_path, tuned(seed=1))
    assert (tmp_path / "adapter.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    load_lora_adapters(tmp_path, model)


def test_what_has_no_adapter_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model has no adapter"):
        save_lora_adapters(tmp_path, LanguageModel(gpt_tiny()))
