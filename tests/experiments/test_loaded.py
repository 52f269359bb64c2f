"""Models to use or to start from: runs with a tokenizer of their own, glassllm, folders of Hugging Face."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.data import DataConfig, load_tokenizer, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.loaded import base_config, base_model, base_tokenizer, is_pretrained, pretrained, trained
from lmxlab.experiments.run import execute
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import load_model
from lmxlab.models.base import LanguageModel
from lmxlab.models.export import export_model
from lmxlab.models.llama import llama_config, llama_tiny
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

X = mx.array([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two steps whose text is gone."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat. " * 60)
    data = DataConfig(str(text), "char", cache_dir=str(folder))
    model = llama_config(prepare(data).vocab_size, 16, 2, 2, 1, 16, max_seq_len=32)
    optim = TrainConfig(batch_size=2, max_steps=2, compile_step=False)
    spec = RunSpec("first", model, data, optim, seq_len=8, eval_tokens=32, sample_tokens=2)
    execute(spec, RunFolder(folder / "run"))
    text.unlink()
    return RunFolder(folder / "run")


def test_a_run_can_be_used_where_its_text_is_not(run: RunFolder) -> None:
    found = trained(run)
    assert found.tokenizer.decode(found.tokenizer.encode("the mat")) == "the mat"
    assert found.context == 8 and found.run is run and not found.model.training


def test_a_run_can_start_from_another_run(run: RunFolder, tmp_path: Path) -> None:
    source = str(run.path)
    assert base_config(source) == load_model(run)[1].config and not is_pretrained(source)
    assert mx.array_equal(base_model(source)(X)[0], load_model(run)[1](X)[0])
    text = tmp_path / "more.txt"
    text.write_text("the mat sat on the cat. " * 60)
    data = DataConfig(str(text), base_tokenizer(source), cache_dir=str(tmp_path))
    spec = replace(load_model(run)[0], name="second", data=data, pretrained=source)
    entry = execute(spec, RunFolder(tmp_path / "second"))
    assert entry.status == "keep"
    tokens = load_tokenizer(RunFolder(tmp_path / "second").tokenizer).encode("the cat")
    assert tokens == trained(run).tokenizer.encode("the cat")


def test_a_hugging_face_folder_serves_as_well(tmp_path: Path) -> None:
    export_model(LanguageModel(llama_tiny()), tmp_path / "model")
    source = str(tmp_path / "model")
    assert base_config(source).block.d_model == 64 and base_tokenizer(source) == source and is_pretrained(source)
    assert base_model(source).embed.weight.dtype == mx.float32


@pytest.mark.parametrize("language", ["en", "pt"])
def test_glassllm_speaks_two_languages(language: str) -> None:
    source = f"glassllm:{language}"
    model, found = base_model(source), pretrained(source)
    assert model.config == base_config(source) == found.model.config
    assert load_tokenizer(base_tokenizer(source)).encode("casa") == found.tokenizer.encode("casa")


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give glassllm, a folder with config.json"):
        base_config(str(tmp_path))
