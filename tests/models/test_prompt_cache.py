import dataclasses
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_config, llama_tiny
from lmxlab.models.prompt_cache import FORMAT, load_prompt_cache, save_prompt_cache

TOKENS = mx.array([[5, 6, 7, 8]])


def test_a_quantised_cache_is_written_as_it_is(tmp_path: Path) -> None:
    model = LanguageModel(llama_config(64, 64, 2, 1, 2, 64))
    _, cache = model(TOKENS, model.make_cache(bits=8))
    save_prompt_cache(tmp_path / "prompt.safetensors", cache, model)
    again = load_prompt_cache(tmp_path / "prompt.safetensors", model)
    assert mx.array_equal(model(TOKENS, again)[0], model(TOKENS, cache)[0])
    assert [type(entry) for entry in again] == [type(entry) for entry in cache]


def test_the_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    _, cache = model(TOKENS)
    save_prompt_cache(tmp_path / "prompt", cache, model)
    load_prompt_cache(tmp_path / "prompt", model)
    slower = LanguageModel(
        dataclasses.replace(model.config, block=dataclasses.replace(model.config.block, norm_eps=0.1))
    )
    slower.update(model.parameters())
    for other in (LanguageModel(llama_tiny()), LanguageModel(gpt_tiny()), slower):
        with pytest.raises(UserError, match="another model"):
            load_prompt_cache(tmp_path / "prompt", other)


def test_a_prompt_cache_of_weights_that_differ_in_one_row_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    save_prompt_cache(tmp_path / "prompt", model(TOKENS)[1], model)
    model.embed.weight[5, 0] += 1.0
    with pytest.raises(UserError, match="another model"):
        load_prompt_cache(tmp_path / "prompt", model)


def test_names_that_end_alike_but_for_a_dot_are_different_files(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    for n in (1, 3):
        save_prompt_cache(tmp_path / f"chat.{n}", model(TOKENS[:, :n])[1], model)
    offsets = [load_prompt_cache(tmp_path / f"chat.{n}", model)[0].offset for n in (1, 3)]  # type: ignore[union-attr]
    assert offsets == [1, 3]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    model = LanguageModel(llama_tiny())
    with pytest.raises(UserError, match="No prompt cache at"):
        load_prompt_cache(tmp_path / "nothing", model)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(UserError, match="cannot be read"):
        load_prompt_cache(tmp_path / "torn", model)
    for metadata in ({}, {"format": FORMAT}):
        mx.save_safetensors(str(tmp_path / "weights.safetensors"), {"a": mx.zeros(1)}, metadata)
        with pytest.raises(UserError, match="no prompt cache of lmxlab"):
            load_prompt_cache(tmp_path / "weights", model)
