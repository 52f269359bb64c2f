"""generate: what it refuses before it writes anything."""

import json
from pathlib import Path

from .conftest import Cli, only_run


def test_a_character_that_the_tokenizer_never_saw(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    done = cli("generate", only_run(folder), "--prompt", "日")
    assert done.code == 2 and "'日'" in done.err


def test_bad_sampling_options_are_refused_before_anything_is_written(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    done = cli("generate", only_run(folder), "--top-p", "2")
    assert done.code == 2 and done.out == "" and "top_p" in done.err


def test_several_prompts_end_at_stop_strings_and_repeat_with_a_seed(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    run = only_run(folder)
    options = ("--max-tokens", "60", "--seed", "3", "--min-p", "0.01")
    plain = cli("generate", run, "--prompt", "To", "My", *options, "--json")
    texts = {entry["prompt"]: entry["text"] for entry in json.loads(plain.out)["texts"]}
    assert all(50 < len(text) <= 60 for text in texts.values())  # a separator has no text
    stop = texts["To"][20:22]
    stopped = cli("generate", run, "--prompt", "To", "My", *options, "--stop", stop)
    assert stopped.out == "".join(prompt + text.split(stop)[0] + "\n" for prompt, text in texts.items())
    single = cli("generate", run, "--prompt", "My", *options, "--json")
    assert json.loads(single.out)["text"] == texts["My"]


def test_a_pretrained_model_instead_of_a_run(cli: Cli, folder: Path) -> None:
    options = ("--max-tokens", "20", "--seed", "1")
    done = cli("generate", "--model", "glassllm", "Once upon", *options)
    assert done.code == 0 and done.out.startswith("Once upon") and len(done.out) > 30, done.err
    both = json.loads(cli("generate", "--model", "glassllm", "Once", "--prompt", "Alice", *options, "--json").out)
    assert [entry["prompt"] for entry in both["texts"]] == ["Once", "Alice"] and both["run"] == "glassllm"
    assert cli("generate", "--model", "glassllm:xx", "Once").code == 2
    assert cli("generate", "--model", "nowhere/none", "Once").code in (1, 2)
    assert "Which model?" in cli("generate").err


def test_an_exported_run_writes_what_the_run_writes(cli: Cli, folder: Path) -> None:
    assert cli("train", "other.toml", "--budget.steps", "1").code == 0
    (run,) = (folder / "runs" / "other").iterdir()
    assert cli("export", run, "out").code == 0
    options = ("--max-tokens", "12", "--temperature", "0", "--json")
    trained = json.loads(cli("generate", run, "--prompt", "To", *options).out)
    exported = json.loads(cli("generate", "--model", "out", "To", *options).out)
    assert exported["text"] == trained["text"]
