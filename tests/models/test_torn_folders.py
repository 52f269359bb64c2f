"""Folders whose files contradict each other, or hold something else than their names say."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.llama import llama_tiny
from lmxlab.models.weight_files import INDEX, WHOLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model(LanguageModel(llama_tiny()), tmp_path / "model")
    return tmp_path / "model"


def weights(folder: Path) -> dict[str, mx.array]:
    arrays: Any = mx.load(str(folder / WHOLE))
    mx.eval(arrays)
    return dict(arrays)


def with_fields(folder: Path, **fields: Any) -> str:
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_whole_file_is_read_before_an_index_as_transformers_does(folder: Path) -> None:
    zeros = {name: mx.zeros_like(array) for name, array in weights(folder).items()}
    mx.save_safetensors(str(folder / "old.safetensors"), zeros)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(zeros, "old.safetensors")}))
    assert mx.abs(load_from_hf(str(folder))[0].embed.weight).max() > 0


def test_a_weight_in_two_files_is_refused(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"holds .*model.embed.* in b.safetensors and in another file"):
        load_from_hf(str(folder))


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(folder: Path) -> None:
    arrays = weights(folder)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 0.0
    mx.save_safetensors(str(folder / WHOLE), arrays)
    model, config = load_from_hf(with_fields(folder, tie_word_embeddings=True), dtype=mx.float32)
    assert config.tie_embeddings and mx.array_equal(model.embed.weight, arrays["lm_head.weight"])
    mx.save_safetensors(str(folder / WHOLE), arrays | {"lm_head.weight": arrays["lm_head.weight"] + 0.1})
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_from_hf(str(folder))


def test_weights_that_are_no_floating_point_numbers_are_refused(folder: Path) -> None:
    arrays = weights(folder)
    packed = arrays["model.layers.0.mlp.up_proj.weight"].astype(mx.uint8)
    mx.save_safetensors(str(folder / WHOLE), arrays | {"model.layers.0.mlp.up_proj.weight": packed})
    with pytest.raises(UserError, match=r"up_proj.weight are no floating-point numbers"):
        load_from_hf(str(folder))


@pytest.mark.parametrize("index", [[1], {}, {"weight_map": [1]}, {"weight_map": {"a": 3}}])
def test_an_index_that_is_none_is_named(index: Any, folder: Path) -> None:
    (folder / WHOLE).rename(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=INDEX):
        load_from_hf(str(folder))


@pytest.mark.parametrize("config", ["[1]", '"llama"', '{"model_type": ["llama"]}'])
def test_a_config_that_is_no_table_is_refused(config: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match="config.json must hold a table|Unsupported model_type"):
        load_from_hf(str(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"factor": 8.0}}, r"rope type 'default'.*\['factor'\]"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}}, r"\['full_attention'\]"),
        ({"rope_scaling": [1]}, "no table of fields"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "llama config"),
        ({"num_hidden_layers": 0}, "llama config"),
        ({"num_hidden_layers": "2"}, "llama config"),
    ],
)
def test_values_that_mean_nothing_are_named_and_never_ignored(
    fields: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_from_hf(with_fields(folder, **fields))
