"""generate: what it refuses before it writes anything."""

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
