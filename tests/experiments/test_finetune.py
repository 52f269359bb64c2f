"""Runs from a pretrained model: adapters alone are trained, the run folder holds all that using them again takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from lmxlab.core.adapters import adapters_of
from lmxlab.core.lora import load_lora_adapters
from lmxlab.data import DataConfig
from lmxlab.errors import UserError
from lmxlab.experiments.designs import find_design
from lmxlab.experiments.finetune import (
    LoRAConfig,
    fold_adapters,
)
from lmxlab.experiments.interrupt import Interrupted, Stop
from lmxlab.experiments.loaded import base_config, base_model, build_model
from lmxlab.experiments.run import execute
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import load_model
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

X = mx.array([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    text = tmp_path_factory.mktemp("data") / "text.txt"
    text.write_text("Alice was beginning to get very tired of sitting by her sister on the bank. " * 40)
    return RunSpec(
        "tune",
        base_config("glassllm"),
        DataConfig(str(text), "glassllm", cache_dir=str(text.parent)),
        TrainConfig(learning_rate=5e-3, batch_size=2, max_steps=4, compile_step=False),
        seq_len=8,
        eval_tokens=64,
        sample_tokens=4,
        pretrained="glassllm",
        lora=LoRAConfig(4, targets=("attention", "ffn"), dropout=0.1, quantize=8),
    )


def test_a_run_with_adapters_can_be_used_resumed_and_carried_away(spec: RunSpec, tmp_path: Path) -> None:
    assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    folder = RunFolder(tmp_path / "run")
    entry = execute(spec, folder)
    _, model = load_model(folder)
    assert not adapters_of(model)  # folded in
    assert entry.param_count > 852608  # the quantised weights as many as they stand for, and the adapters
    base = base_model("glassllm")
    assert mx.abs(model(X)[0] - base(X)[0]).max() > 0.05
    load_lora_adapters(folder.path / "adapter", base)
    assert mx.abs(model(X)[0] - base(X)[0]).mean() < 0.02  # it was trained over 8-bit weights

    again, stop = RunFolder(tmp_path / "again"), Stop()
    stop.request()
    with pytest.raises(Interrupted):
        execute(spec, again, stop=stop)
    resumed = execute(spec, again, resume=True)
    assert resumed.val_loss == pytest.approx(entry.val_loss, abs=1e-6)


def test_a_run_goes_on_from_one_with_adapters(spec: RunSpec, tmp_path: Path) -> None:
    execute(spec, RunFolder(tmp_path / "run"))
    second = replace(spec, pretrained=str(tmp_path / "run"), lora=LoRAConfig())
    model = build_model(second)
    assert mx.array_equal(model(X)[0], load_model(RunFolder(tmp_path / "run"))[1](X)[0])
    assert "weight" in model.trainable_parameters()["embed"]
    assert execute(second, RunFolder(tmp_path / "second")).status == "keep"


def test_without_adapters_the_whole_pretrained_model_is_trained(spec: RunSpec) -> None:
    whole = replace(spec, lora=LoRAConfig())
    model = build_model(whole)
    assert mx.array_equal(model.embed.weight, base_model("glassllm").embed.weight)
    assert "weight" in model.trainable_parameters()["embed"]
    fold_adapters(model, whole.lora)


def test_a_config_file_says_where_to_start(tmp_path: Path) -> None:
    file = tmp_path / "tune.toml"
    file.write_text('pretrained = "glassllm"\n[lora]\nrank = 2\n')
    design = find_design(str(file))
    assert design.model(99, 7) == base_config("glassllm")
    file.write_text('pretrained = "glassllm"\n[model]\ndesign = "gpt"\n')
    with pytest.raises(UserError, match="would be ignored: pretrained 'glassllm' says what the model is"):
        find_design(str(file)).model(99, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"alpha": 8.0}}, "lora.alpha would be ignored: lora.rank is 0"),
        ({"lora": {"rank": -1}}, "lora.rank must be at least 0, got -1"),
        ({"lora": {"rnk": 1}}, "Unknown config key 'lora.rnk'; did you mean 'lora.rank'"),
        ({"data": {"tokenizer": "char"}}, "A pretrained model needs its own tokenizer, not 'char'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str, spec: RunSpec) -> None:
    table = spec.to_dict() | changes
    with pytest.raises(UserError, match=message):
        RunSpec.from_dict(table)
