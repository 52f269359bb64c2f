"""compare from the command line: what it prints and leaves, its interruption, its mistakes, two at once."""

import json
import re
import signal
from pathlib import Path

import pytest

from lmxlab.experiments.tracking import ExperimentLog

from .conftest import Cli, start, wait_for

SMALL = [
    "tiny.toml",
    "other.toml",
    "--dataset",
    "pydocs",
    "--seq-len",
    "16",
    "--batch-size",
    "4",
    "--eval-tokens",
    "800",
]


def test_the_main_job_in_small(cli: Cli, folder: Path) -> None:
    done = cli(
        "compare", "gpt", "llama", "--dataset", "pydocs", "--flops", "1.5e10", "--seeds", "2", "--eval-tokens", "800"
    )
    assert done.code == 0, done.err
    for design in ("gpt", "llama"):
        assert re.search(rf"^{design} +\d\.\d{{4}} +\d\.\d{{4}} to \d\.\d{{4}} +[\d,]{{7}} ", done.out, re.M)
        assert f"{design} (seed 0) writes:" in done.out
    assert re.search(r"^gpt - llama +-?\d\.\d{4} ", done.out, re.M)
    assert re.search(r"is better than|No difference shown", done.out)
    (comparison,) = (folder / "runs" / "compare").iterdir()
    png = comparison / "curves.png"
    assert str(png.relative_to(folder)) in done.out and png.read_bytes().startswith(b"\x89PNG")
    assert len(ExperimentLog(folder / "runs" / "results.jsonl").load()) == 4
    assert "d_ff 344 -> 384" in done.err and "% of the budget used" in done.err


def test_json_is_all_that_stdout_gets(cli: Cli, folder: Path) -> None:
    done = cli("compare", *SMALL, "--flops", "2e8", "--seeds", "4", "9", "--json")
    result = json.loads(done.out)
    assert result["seeds"] == [4, 9] and [d["name"] for d in result["designs"]] == ["tiny", "other"]
    assert all(len(d["val_bpb"]) == 2 and d["flops"] <= 2e8 for d in result["designs"])
    assert result["verdicts"][0]["sentence"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_comparison_can_go_on(cli: Cli, folder: Path, number: signal.Signals) -> None:
    flags = ["--flops", "5e8", "--seeds", "2", "--json"]
    process = start("compare", *SMALL, *flags)
    ledger = folder / "runs" / "results.jsonl"
    wait_for(lambda: ledger.exists() and ledger.read_text().count("\n") >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    (comparison,) = (folder / "runs" / "compare").iterdir()
    if number != signal.SIGKILL:
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        assert f"lmxlab compare --resume {comparison.relative_to(folder)}" in err
    resumed = json.loads(cli("compare", "--resume", comparison, "--json").out)
    whole = json.loads(cli("compare", *SMALL, *flags).out)
    assert [d["val_bpb"] for d in resumed["designs"]] == [d["val_bpb"] for d in whole["designs"]]
    assert len(ExperimentLog(ledger).load()) == 8


def test_two_comparisons_write_one_ledger(folder: Path) -> None:
    flags = ["--flops", "2e8", "--seeds", "3", "--json"]
    both = [start("compare", *SMALL, *flags) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    log = ExperimentLog(folder / "runs" / "results.jsonl")
    entries = log.load()
    assert len(entries) == 12 and log.problems == []
    assert len({entry.config["run"] for entry in entries}) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "two designs or more"),
        (["gpt"], "two designs or more"),
        (["gpt", "lama"], "did you mean 'llama'"),
        (["gpt", "llama", "--flops", "1000"], "too small: one step of gpt takes"),
        (["gpt", "llama", "--flops", "1e9", "--minutes", "1"], "not both"),
        (["gpt", "llama", "--minutes", "0"], "minutes must be above 0"),
        (["gpt", "llama", "--seeds", "0"], "--seeds must be at least 1"),
        (["gpt", "llama", "--seeds", "1", "1"], "Seeds must be given and differ"),
        (["gpt", "llama", "--dataset", "missing.txt"], "missing.txt"),
        (["gpt", "--resume", "runs"], "leave out gpt"),
        (["--resume", "nowhere"], "no folder of a comparison"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(cli: Cli, arguments: list[str], message: str) -> None:
    data = [] if "--dataset" in arguments or "--resume" in arguments else ["--dataset", "pydocs"]
    done = cli("compare", *arguments, *data)
    assert done.code == 2 and done.out == ""
    assert message in done.err.splitlines()[-1] and done.err.splitlines()[-1].startswith("lmxlab: ")


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\x00\x01\xff\xfe" * 99, ""), (b"abc", "")])
def test_a_text_that_cannot_be_used_is_named(cli: Cli, folder: Path, content: bytes, message: str) -> None:
    (folder / "text.txt").write_bytes(content)
    done = cli("compare", "gpt", "llama", "--dataset", "text.txt")
    assert done.code == 2 and message in done.err and done.err.splitlines()[-1].startswith("lmxlab: ")


def test_resuming_takes_no_other_settings(cli: Cli, folder: Path) -> None:
    flags = ["--dataset", "pydocs", "--flops", "2e8", "--seq-len", "16", "--batch-size", "4", "--eval-tokens", "500"]
    assert cli("compare", "tiny.toml", "other.toml", *flags, "--seeds", "1").code == 0
    (made,) = (folder / "runs" / "compare").iterdir()
    done = cli("compare", "--resume", made, "--seeds", "5", "--flops", "1")
    assert done.code == 2 and "leave out --flops, --seeds" in done.err
    assert cli("compare", "--resume", made).code == 0
    (made / "compare.json").write_text('{"specs": [], "seeds": [0], "flops": "x", "notes": []}')
    done = cli("compare", "--resume", made)
    assert done.code == 2 and "damaged" in done.err
    assert "no folder of a comparison (compare.json: No such file" in cli("compare", "--resume", "nothing").err
