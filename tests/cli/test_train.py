"""train: a run from start to text, and every mistake a user can make."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmxlab.experiments.tracking import ExperimentLog

from .conftest import Cli, only_run, start


def test_a_run_leaves_everything_about_it(cli: Cli, folder: Path) -> None:
    done = cli("train", "tiny.toml", "--optim.learning-rate", "1e-3", "--json")
    assert done.code == 0, done.err
    entry, run = json.loads(done.out), only_run(folder)
    settings = json.loads((run / "config.json").read_text())
    assert settings["spec"]["optim"]["learning_rate"] == 1e-3  # the command line wins over the file
    assert settings["spec"]["optim"]["batch_size"] == 4 and settings["spec"]["model"]["block"]["d_model"] == 32
    assert settings["data"]["hash"] and settings["packages"]["mlx"] and settings["hardware"]["cores"] >= 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in rows if "val_bpb" in row] == [20, 40]
    assert rows[-1]["tokens"] == 40 * 4 * 16
    assert json.loads((run / "result.json").read_text())["val_bpb"] == entry["val_bpb"]
    assert (
        len(list((run / "samples").iterdir())) == 1
        and (run / "curves.png").is_file()
        and "done" in (run / "run.log").read_text()
    )
    (logged,) = ExperimentLog(folder / "runs" / "results.jsonl").load()
    assert logged.val_bpb == entry["val_bpb"] and 2 < logged.val_bpb < 7
    assert logged.metrics["train_s"] > 0 and logged.metrics["eval_s"] > 0 and logged.metrics["compile_s"] > 0


def test_the_run_can_be_used(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml").code == 0
    name = f"tiny/{only_run(folder).name}"
    first = cli("generate", name, "--prompt", "The ", "--max-tokens", "40", "--seed", "1")
    assert first.out.startswith("The ") and len(first.out) > 20
    assert cli("generate", only_run(folder), "--prompt", "The ", "--max-tokens", "40", "--seed", "1").out == first.out
    scored = json.loads(cli("eval", name, "--json").out)
    logged = json.loads(cli("log", "show", name, "--json").out)
    assert scored["val_bpb"] == pytest.approx(logged["val_bpb"], rel=0.05)  # the run scored a part of the split
    assert scored["tokens"] > 40_000
    assert (
        name in cli("log", "list").out and name in cli("log", "best").out and name in cli("log", "tail", "-n", "1").out
    )
    assert "val_bpb" in cli("log", "show", name).out
    moved = folder / "elsewhere"
    shutil.move(only_run(folder), moved)
    assert cli("generate", moved, "--max-tokens", "3").code == 0


def test_budgets_stop_at_the_step(cli: Cli, folder: Path) -> None:
    by_tokens = json.loads(cli("train", "tiny.toml", "--budget.tokens", "700", "--json").out)
    assert by_tokens["metrics"]["steps"] == 700 // 64
    per_step = by_tokens["total_flops"] / 10
    by_flops = json.loads(cli("train", "tiny.toml", "--budget.flops", str(5.9 * per_step), "--json").out)
    assert by_flops["metrics"]["steps"] == 5
    by_minutes = cli("train", "tiny.toml", "--budget.minutes", "0.01", "--json")
    assert by_minutes.code == 0 and json.loads(by_minutes.out)["metrics"]["steps"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gtp"], "did you mean 'gpt'"),
        (["nowhere.toml"], "no config file"),
        (["tiny.toml", "--budget.flops", "10"], "too small: one step of tiny takes"),
        (["tiny.toml", "--budget.flops", "1e9", "--budget.steps", "3"], "one unit"),
        (["tiny.toml", "--data.dataset", "shakespear"], "did you mean 'shakespeare'"),
        (["tiny.toml", "--optim.optimizer", "adam"], "Unknown optimizer 'adam'"),
        (["tiny.toml", "--model.d-model", "33"], "divisible"),
        (["tiny.toml", "--seq-len", "1000000"], "Not enough data"),
        (["tiny.toml", "--data.val-fraction", "3"], "val_fraction is 3.0"),
        (["--seed", "3", "tiny.toml"], "The design comes first"),
        (["--resume", "nothing"], "no run 'nothing'"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli("train", *arguments)
    assert done.code == 2 and done.out == ""
    assert message in done.err.splitlines()[-1] and done.err.splitlines()[-1].startswith("lmxlab: ")


def test_an_unknown_key_in_the_file_offers_the_nearest(cli: Cli, folder: Path) -> None:
    (folder / "wrong.toml").write_text('[model]\ndesign = "gpt"\n[optim]\nlearning_rat = 1.0\n')
    done = cli("train", "wrong.toml")
    assert done.code == 2 and "did you mean 'optim.learning_rate'" in done.err


def test_a_diverging_run_stops_keeps_its_checkpoint_and_says_where(cli: Cli, folder: Path) -> None:
    # SGD without clipping at an absurd rate: grows until it overflows, some steps after the first checkpoint.
    flags = ["--optim.optimizer", "sgd", "--optim.learning-rate", "1e4", "--optim.max-grad-norm", "0"]
    done = cli("train", "tiny.toml", *flags, "--optim.warmup-steps", "0", "--optim.checkpoint-interval", "1")
    assert done.code == 2 and "stopped at step" in done.err and "checkpoints" in done.err
    (entry,) = ExperimentLog(folder / "runs" / "results.jsonl").load()
    assert entry.status == "crash" and "step" in entry.description and entry.value("val_bpb") is None
    assert done.err.count("stopped at step") == 1 and "100% of the budget" not in done.err
    done = cli("log", "best")  # a crash is no result
    assert done.code == 2 and "has ended well" in done.err


def test_a_file_where_the_runs_should_go_is_named(cli: Cli, folder: Path) -> None:
    (folder / "runs").write_text("not a folder")
    done = cli("train", "tiny.toml")
    assert done.code == 1 and "runs" in done.err and len(done.err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(folder: Path) -> None:
    (folder / "runs").mkdir()
    os.chmod(folder / "runs", 0o555)
    command = [sys.executable, "-m", "lmxlab", "train", "tiny.toml", "--budget.steps", "2"]
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*drop, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("lmxlab: ") and "Permission denied" in done.stderr


def test_a_full_disk_ends_the_run_with_one_line(folder: Path) -> None:
    def limit() -> (
        None
    ):  # what a full disk does, for files above 100 kB: the weights fit, the optimizer's state does not
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    assert start("data", "prepare", "pydocs").wait() == 0
    process = start("train", "tiny.toml", "--model.d-model", "64", preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in err
    assert "Cannot write the checkpoint" in err.splitlines()[-1]


def test_a_step_that_spoils_the_model_is_neither_saved_nor_kept(cli: Cli, folder: Path) -> None:
    spoil = ["--optim.learning-rate", "1e38", "--optim.warmup-steps", "0", "--optim.lr-schedule", "constant"]
    done = cli("train", "tiny.toml", *spoil, "--budget.steps", "1", "--optim.checkpoint-interval", "1")
    assert done.code == 2 and "Traceback" not in done.err
    assert not list((only_run(folder) / "checkpoints").glob("step-*"))
    (logged,) = ExperimentLog(folder / "runs" / "results.jsonl").load()
    assert logged.status == "crash"


def test_a_start_that_is_refused_leaves_no_folder(cli: Cli, folder: Path) -> None:
    done = cli("train", "tiny.toml", "--budget.flops", "10")
    assert done.code == 2 and not list(folder.glob("runs/tiny/*"))


@pytest.mark.parametrize("content", ['{"spec": 5}', '{"spec": {}}', "5", '{"data": 5}'])
def test_a_damaged_config_is_one_line(cli: Cli, folder: Path, content: str) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    (only_run(folder) / "config.json").write_text(content)
    done = cli("generate", only_run(folder))
    assert done.code == 2 and done.err.count("\n") == 1


def test_an_unknown_component_is_refused_before_anything_is_made(cli: Cli, folder: Path) -> None:
    for slot in ("attention", "ffn", "norm", "position"):
        done = cli("train", "tiny.toml", f"--model.{slot}", "ropes")
        assert done.code == 2 and f"Unknown {slot} 'ropes'" in done.err
    assert not list(folder.glob("runs/tiny/*"))
