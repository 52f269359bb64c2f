"""Designs by name and by file."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.designs import adapt, design_names, find_design
from lmxlab.models.llama import llama_tiny


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(UserError, match=r"no config file 'nowhere\.toml'"):
        find_design("nowhere.toml")


def test_named_designs_take_the_vocabulary_and_context_of_the_run() -> None:
    for name in design_names():
        model = find_design(name).model(77, 48)
        assert (model.vocab_size, model.block.max_seq_len) == (77, 48), name


def test_an_unknown_design_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'llama'"):
        find_design("lama")


def test_a_file_starts_from_a_design_and_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text('[model]\ndesign = "gpt"\nd_model = 192\nn_layers = 2\nqk_norm = true\n')
    design = find_design(str(path))
    model = design.model(77, 48)
    assert design.name == "wide" and not design.resizable
    assert (model.block.d_model, model.n_layers, model.block.qk_norm, model.vocab_size) == (192, 2, True, 77)


def test_a_file_may_hold_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": "mine", "model": llama_tiny().to_dict()}))
    design = find_design(str(path))
    assert design.name == "mine" and design.model(77, 48) == llama_tiny()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", r"\[model\] needs design = NAME"),
        ('[model]\ndesign = "gtp"', "did you mean 'gpt'"),
        ('[model]\ndesign = "gpt"\nd_modle = 3', "did you mean 'model.d_model'"),
        ('[model]\ndesign = "gpt"\nd_model = 130', "divisible"),
    ],
)
def test_a_wrong_model_table_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_design(str(path)).model(77, 48)


@pytest.mark.parametrize("design", ["gpt", "llama", "gpt2_tiny"])
@pytest.mark.parametrize("scale", [1.0, 5.0, math.sqrt(128)])
def test_no_change_changes_nothing(design: str, scale: float) -> None:
    model = dataclasses.replace(find_design(design).model(65, 64), embed_scale=scale)
    assert adapt(model, {}) == model
    assert adapt(model, {"n_layers": 3}) == dataclasses.replace(model, n_layers=3)


def test_embeddings_are_as_large_as_sinusoids_and_only_then() -> None:
    gpt = find_design("gpt").model(65, 64)
    assert adapt(gpt, {"d_model": 64}).embed_scale == 8.0
    for changes in ({"position": "learned"}, {"position": "learned", "d_model": 64}):
        learned = adapt(gpt, changes)
        assert learned.embed_scale == 1.0
        assert adapt(learned, {"embed_scale": 5.0}).embed_scale == 5.0
    assert adapt(find_design("llama").model(65, 64), {"position": "sinusoidal", "d_model": 64}).embed_scale == 8.0


def test_a_mup_base_in_a_file_makes_the_model_that_the_factories_make(tmp_path: Path) -> None:
    """The scale of attention and that of embeddings under sinusoids belong to it, not the learning rates alone."""
    file = tmp_path / "wide.toml"
    file.write_text('[model]\ndesign = "gpt"\nd_model = 256\nmup_base_width = 64\n')
    config = find_design(str(file)).model(60, 64)
    assert config.width_mult == 4 and config.block.mup and config.embed_scale == 8
    file.write_text('[model]\ndesign = "gpt"\nmup_base_width = 64\n')
    config = find_design(str(file)).model(60, 64)
    assert config.block.effective_attention_scale == 1 / config.block.head_dim and config.embed_scale == 8
    llama = adapt(llama_tiny(), {"mup_base_width": 32})
    assert llama.block.mup and llama.embed_scale == 1


def test_windows_are_shorter_than_the_context_at_laboratory_size() -> None:
    for name in ("mistral", "gemma2", "gemma3"):
        model = find_design(name).model(65, 64)
        windows = [model.get_block_config(i).window_size for i in range(model.n_layers)]
        assert 16 in windows, name
        assert name == "mistral" or None in windows, name
    assert find_design("mistral").model(65, 64) != find_design("llama").model(65, 64)
