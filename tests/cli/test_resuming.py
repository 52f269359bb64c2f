"""train: a run that is interrupted in every way, or damaged, and goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab import platform
from lmxlab.experiments.tracking import ExperimentLog
from lmxlab.training import RunFolder

from .conftest import Cli, only_run, start, wait_for


def weights(run: Path) -> dict[str, mx.array]:
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    arrays = {**mx.load(str(last / "model.safetensors")), **mx.load(str(last / "optimizer.safetensors"))}
    mx.eval(arrays)  # tests go on to spoil the files
    return arrays


def same(a: dict[str, mx.array], b: dict[str, mx.array]) -> bool:
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_bit_for_bit(cli: Cli, folder: Path, number: signal.Signals) -> None:
    flags = ["--budget.steps", "200", "--optim.checkpoint-interval", "35"]
    process = start("train", "tiny.toml", *flags)
    metrics = folder / "runs" / "tiny"
    wait_for(lambda: any('"step": 50' in file.read_text() for file in metrics.glob("*/metrics.jsonl")), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    run = only_run(folder)
    assert not (run / "result.json").exists() and "Traceback" not in err
    if number != signal.SIGKILL:
        assert process.returncode == 130 and out == ""
        assert f"lmxlab train --resume {run.relative_to(folder)}" in err
    resumed = cli("train", "--resume", run, "--json")
    assert resumed.code == 0, resumed.err
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == sorted({*range(10, 201, 10)}) and steps == sorted(steps)
    interrupted, result = weights(run), json.loads((run / "result.json").read_text())
    lines = [{**row, "train_s": 0} for row in RunFolder(run).read_metrics()]
    shutil.rmtree(folder / "runs")
    assert cli("train", "tiny.toml", *flags).code == 0
    assert same(interrupted, weights(only_run(folder)))
    whole = json.loads((only_run(folder) / "result.json").read_text())
    assert result["metrics"]["curve"] == whole["metrics"]["curve"] and result["val_bpb"] == whole["val_bpb"]
    assert lines == [{**row, "train_s": 0} for row in RunFolder(only_run(folder)).read_metrics()]
    assert len(ExperimentLog(folder / "runs" / "results.jsonl").load()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_spares_the_compiler(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Ctrl-C in a terminal goes to every process of the group, also to the g++ that MLX has started."""
    if not platform.can_compile():
        pytest.skip("nothing is compiled on this machine")
    kernels = folder / "kernels"
    kernels.mkdir()
    monkeypatch.setenv("TMPDIR", str(kernels))  # so that they are compiled anew
    process = start("train", "tiny.toml", "--optim.compile-step", "--budget.steps", "30", start_new_session=True)
    wait_for(lambda: (folder / "runs").exists() and any(kernels.rglob("*.cpp")), process)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err, err
    assert cli("train", "--resume", only_run(folder)).code == 0


def test_a_kill_in_the_middle_of_a_save_loses_only_that_save(cli: Cli, folder: Path) -> None:
    flags = ["--budget.steps", "100", "--optim.checkpoint-interval", "1", "--model.d-model", "128"]
    process = start("train", "tiny.toml", *flags)
    half_written = lambda: any((folder / "runs").glob("tiny/*/checkpoints/.tmp-step-0000000[1-9]?-*"))  # noqa: E731
    wait_for(half_written, process)
    process.kill()
    process.communicate()
    assert cli("train", "--resume", only_run(folder)).code == 0
    interrupted = weights(only_run(folder))
    shutil.rmtree(folder / "runs")
    flags[3] = "40"
    assert cli("train", "tiny.toml", *flags).code == 0
    assert same(interrupted, weights(only_run(folder)))


def test_resuming_with_other_settings_names_them(cli: Cli, folder: Path) -> None:
    process = start("train", "tiny.toml", "--budget.steps", "100000")
    wait_for(lambda: any((folder / "runs").glob("tiny/*/checkpoints/step-*")), process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    done = cli("train", "--resume", only_run(folder), "--optim.learning-rate", "0.5")
    assert done.code == 2 and "optim.learning_rate is 0.002 there, 0.5 asked" in done.err
    done = cli("train", "other.toml", "--resume", only_run(folder))
    assert done.code == 2 and "model.block.attention is 'mha' there, 'gqa' asked" in done.err


def test_a_torn_checkpoint_is_passed_over(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml").code == 0
    run, whole = only_run(folder), weights(only_run(folder))
    (run / "result.json").unlink()
    last = sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    assert cli("train", "--resume", run).code == 0  # from step 20
    assert same(whole, weights(run))


def test_resuming_a_finished_run_gives_its_result_again(cli: Cli, folder: Path) -> None:
    first = json.loads(cli("train", "tiny.toml", "--json").out)
    again = json.loads(cli("train", "--resume", only_run(folder), "--json").out)
    assert again["val_bpb"] == first["val_bpb"]
    assert len(ExperimentLog(folder / "runs" / "results.jsonl").load()) == 1


def test_one_process_trains_in_a_folder(cli: Cli, folder: Path) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "40").code == 0
    run = only_run(folder)
    (run / "result.json").unlink()
    with RunFolder(run).in_use():
        holder = "import lmxlab.cli, sys; sys.argv = ['lmxlab', 'train', '--resume', sys.argv[1]]; lmxlab.cli.main()"
        done = subprocess.run([sys.executable, "-c", holder, str(run)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Another process is training in" in done.stderr


def test_the_last_evaluation_is_written_once(cli: Cli, folder: Path) -> None:
    """A process may die between the last evaluation and result.json."""
    assert cli("train", "tiny.toml").code == 0
    run = only_run(folder)
    lines = RunFolder(run).read_metrics()
    (run / "result.json").unlink()
    assert cli("train", "--resume", run).code == 0
    again = RunFolder(run).read_metrics()
    assert [row["step"] for row in again] == [row["step"] for row in lines]


@pytest.mark.parametrize("content", ["", "{", '{"metrics": 5}', '{"val_bpb": "x"}', "[]"])
def test_a_damaged_result_is_made_again(cli: Cli, folder: Path, content: str) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    run = only_run(folder)
    (run / "result.json").write_text(content)
    done = cli("train", "--resume", run)
    assert done.code == 0 and "val_bpb" in done.out and "nan" not in done.out
    assert cli("train", "--resume", run).code == 0


def test_the_ledger_of_a_run_is_found_from_within_its_folder(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("train", "tiny.toml", "--budget.steps", "1").code == 0
    run = only_run(folder)
    (run / "result.json").unlink()
    monkeypatch.chdir(run.parent)
    assert cli("train", "--resume", run.name).code == 0
    assert not (run.parent / "runs").exists()
    assert len(ExperimentLog(folder / "runs" / "results.jsonl").load()) == 2
