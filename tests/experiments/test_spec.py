"""Run specs survive a file, and a wrong file says what is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.experiments.spec import Budget, RunSpec, read_config
from lmxlab.models.gpt import gpt_tiny
from lmxlab.training.config import TrainConfig

from .conftest import spec


def test_a_spec_survives_json() -> None:
    original = spec(budget=Budget(flops=1e9), seed=3, optim=TrainConfig(betas=(0.8, 0.95)))
    assert RunSpec.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_a_per_layer_model_survives_json() -> None:
    block = BlockConfig(d_model=32, n_heads=2, d_ff=64)
    blocks = (block, dataclasses.replace(block, d_ff=96))
    original = dataclasses.replace(spec(), model=ModelConfig(block, 64, 2, block_configs=blocks))
    assert RunSpec.from_dict(json.loads(json.dumps(original.to_dict()))) == original


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 3", "did you mean 'seed'"),
        ("[optim]\nlearning_rat = 1.0", "did you mean 'optim.learning_rate'"),
        ('[optim]\nlearning_rate = "high"', "optim.learning_rate must be float, got 'high'"),
        ("[optim]\nbatch_size = true", "optim.batch_size must be int, got True"),
        ("[budget]\nsteps = 3\nflops = 1e9", "one unit"),
        ("[budget]\nsteps = 0", "above 0, got steps = 0"),
        ("optim = 3", r"\[optim\] must be a table"),
        ('seed = "high"', "seed must be int, got 'high'"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        RunSpec.from_dict({"name": "x", "model": gpt_tiny().to_dict(), **read_config(path)})


@pytest.mark.parametrize(("name", "content"), [("a.toml", "seed = "), ("a.json", "{"), ("b.toml", "\x00\xff")])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=name):
        read_config(tmp_path / name)
