"""eval: a run is scored on the data it was trained on, and an unfinished one is said to be one."""

from pathlib import Path

from .conftest import Cli, only_run


def test_a_model_is_not_read_with_another_datas_tokens(cli: Cli, folder: Path) -> None:
    text = folder / "book.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    assert cli("train", "tiny.toml", "--data.dataset", text, "--budget.steps", "2").code == 0
    text.write_text("the quick brown fox jumps over the lazy cow. " * 200)
    run = only_run(folder)
    for command in (["eval", run], ["generate", run, "--prompt", "the"]):
        done = cli(*command)
        assert done.code == 2 and "has changed" in done.err


def test_an_unfinished_run_is_said_to_be_one(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "40").code == 0
    run = only_run(folder)
    assert "has not ended" not in cli("eval", run).err
    assert "has ended already" in cli("train", "--resume", run).err
    (run / "result.json").unlink()
    assert "has not ended" in cli("eval", run).err
