"""Where settings start from: files, flags that name a model or a method, and what contradicts what."""

import json
from pathlib import Path

import pytest

from lmxlab.experiments.spec import RunSpec

from .conftest import Cli

QUICK = ("--budget.steps", "2", "--optim.no-compile-step", "--sample-tokens", "3", "--seq-len", "32")


@pytest.fixture
def pairs(folder: Path) -> Path:
    words = ["once", "upon", "a", "time", "there", "was"]
    rows = [{"prompt": f"{word} ", "chosen": f"{word} the", "rejected": "no"} for word in words]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = [{"prompt": f"{word} ", "completion": f"{word} the"} for word in words]
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, examples)))
    return folder


def only_folder(folder: Path) -> Path:
    (config,) = folder.glob("runs/*/*/config.json")
    return config.parent


def spec_of(folder: Path) -> RunSpec:
    return RunSpec.from_dict(json.loads((only_folder(folder) / "config.json").read_text())["spec"])


def test_a_method_and_a_model_are_named_by_flags(cli: Cli, pairs: Path) -> None:
    flags = ("--pretrained", "glassllm", "--method", "dpo", "--dpo.beta", "0.3", "--lora.rank", "2")
    done = cli("train", *flags, "--data.dataset", "pairs.jsonl", *QUICK)
    assert done.code == 0, done.err
    assert "val_accuracy" in done.out and "val_bpb" not in done.out
    spec = spec_of(pairs)
    assert spec.method.name == "dpo" and vars(spec.method)["beta"] == 0.3
    assert spec.name == "glassllm" and spec.data.tokenizer == "glassllm" and spec.optim.learning_rate == 1e-4
    scored = cli("eval", only_folder(pairs), "--json")
    assert scored.code == 0 and 0 <= json.loads(scored.out)["val_accuracy"] <= 1, scored.err
    assert cli("eval", only_folder(pairs), "--max-tokens", "9").code == 2
    again = cli("train", "--resume", only_folder(pairs))
    assert again.code == 0 and "has ended already" in again.err


def test_a_file_names_them_as_well_and_flags_change_it(cli: Cli, pairs: Path) -> None:
    file = 'pretrained = "glassllm"\n[data]\ndataset = "pairs.jsonl"\n[method]\nname = "dpo"\nbeta = 0.2\n'
    (pairs / "tune.toml").write_text(file)
    flags = ("--method", "sft", "--data.dataset", "examples.jsonl")
    assert cli("train", "tune.toml", *flags, *QUICK).code == 0
    assert spec_of(pairs).method.name == "sft"
    assert "0.2" in cli("train", "tune.toml", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt", "--pretrained", "glassllm"), "gpt and --pretrained glassllm both say what the model is"),
        (("tiny.toml", "--pretrained", "glassllm"), "[model] and --pretrained glassllm both say"),
        (("--pretrained", "glassllm", "--model.n-layers", "2"), "--model changes nothing of a pretrained model"),
        (("--pretrained", "nowhere"), "give glassllm, a folder with config.json"),
        (("--method", "ppo"), "Unknown method 'ppo'"),
        (("--method", "dpo"), "dpo goes on from a model and its tokenizer"),
        (("--method", "distill"), "There is no teacher"),
        (("--pretrained", "glassllm", "--method", "sft"), "sft learns from a file of examples, and"),
    ],
)
def test_what_contradicts_or_lacks_something_is_told(arguments: tuple[str, ...], message: str, cli: Cli) -> None:
    done = cli("train", *arguments)
    assert done.code == 2 and message in done.err, done.err
