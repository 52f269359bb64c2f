"""log: the ledger as a table, whatever its lines look like."""

from pathlib import Path

from lmxlab.experiments.tracking import ExperimentLog, LogEntry

from .conftest import Cli, only_run


def test_a_torn_ledger_line_is_skipped(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "2").code == 0
    ledger = folder / "runs" / "results.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"experiment": "torn", "val_b')
    assert cli("train", "tiny.toml", "--budget.steps", "2").code == 0
    done = cli("log", "list")
    assert done.code == 0 and len(done.out.splitlines()) == 3 and "torn" in done.err


def test_the_log_says_what_can_be_asked_of_it(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "40").code == 0
    done = cli("log", "best", "--metric", "val_bpp")
    assert done.code == 2 and "did you mean 'val_bpb'" in done.err and "tokens_per_s" in done.err
    assert cli("log", "best", "--top", "0").code == cli("log", "tail", "-n", "-1").code == 2
    assert "pydocs" in cli("log", "list").out
    shown = cli("log", "show", only_run(folder).name).out
    assert "curve        val_bpb " in shown and "sample\n" in shown and '"curve"' not in shown


def test_the_curve_of_a_method_has_the_name_of_its_score(cli: Cli, folder: Path) -> None:
    config = {"run": "pref/1", "spec": {"method": {"name": "dpo"}}}
    (folder / "runs").mkdir()
    ExperimentLog(folder / "runs" / "results.jsonl").log(
        LogEntry("pref", config=config, metrics={"curve": [[1e9, 0.75]]})
    )
    assert "curve        val_accuracy 0.7500 at" in cli("log", "show", "pref/1").out
