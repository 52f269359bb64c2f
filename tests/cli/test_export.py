"""export: a run as a folder that others load."""

import json
import re
from pathlib import Path

import mlx.core as mx

from lmxlab.data.tokenizer import load_tokenizer
from lmxlab.experiments.stored import load_model
from lmxlab.models.convert import load_from_hf
from lmxlab.training.run_folder import RunFolder

from .conftest import Cli, only_run


def test_a_trained_model_loads_again_with_its_tokenizer(cli: Cli, folder: Path) -> None:
    assert cli("train", "other.toml", "--budget.steps", "1").code == 0
    (run,) = (folder / "runs" / "other").iterdir()
    done = cli("export", run, "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model_type"] == "llama"
    assert json.loads(done.out)["files"] == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    model, _ = load_from_hf("out", dtype=mx.float32)
    tokenizer = load_tokenizer("out")
    _, trained = load_model(RunFolder(run))
    x = mx.array([tokenizer.encode("The with statement")])
    assert mx.array_equal(model(x)[0], trained(x)[0])
    fields = json.loads((folder / "out" / "config.json").read_text())
    assert fields["vocab_size"] == tokenizer.vocab_size and fields["eos_token_id"] == tokenizer.bos_id

    refused = cli("export", run, "out")
    assert refused.code == 2 and "out exists" in refused.err
    again = cli("export", run, "out", "--overwrite", "--no-tokenizer", "--shard-gb", "0.00001")
    assert again.code == 0 and again.out.startswith("out: a llama model of ")
    assert "mlx_lm.generate --model out" in again.err
    assert len(list((folder / "out").glob("model-*.safetensors"))) > 1
    assert not (folder / "out" / "tokenizer.json").exists()


def test_what_mlx_lm_would_compute_otherwise_is_said(cli: Cli, folder: Path) -> None:
    tiny = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(re.sub(r'design = "\w+"', 'design = "mistral"', tiny))
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    done = cli("export", only_run(folder), "out")
    assert done.code == 0 and "it has no sliding windows in mistral" in done.err
    assert "mlx_lm.generate" not in done.err


def test_a_design_of_our_own_is_refused_with_the_reason(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    done = cli("export", only_run(folder), "out")
    assert done.code == 2 and "no position 'sinusoidal'" in done.err and not (folder / "out").exists()
    assert cli("export", "nowhere", "out").code == 2
    assert cli("export", only_run(folder), "out", "--shard-gb", "0").code == 2
