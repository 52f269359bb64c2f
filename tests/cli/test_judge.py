"""judge: programs of a file to verdicts and pass@k."""

import json

import pytest

pytest.importorskip("wasmtime", reason="the extra `sandbox` is not installed")

PROBLEMS = [
    {
        "task_id": f"t/{i}",
        "prompt": f'def add{i}(x):\n    """Adds {i}."""\n',
        "entry_point": f"add{i}",
        "test": f"def check(candidate):\n    for x in range(5): assert candidate(x) == x + {i}",
    }
    for i in range(3)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def files(folder):
    write(folder / "problems.jsonl", PROBLEMS)
    right, wrong = ("    return x + 1\n", "    return 7\n")
    hostile = "    import os; os._exit(0)\n"
    rows = [{"task_id": "t/1", "completion": text} for text in (right, wrong)]
    write(folder / "samples.jsonl", rows + [{"task_id": "t/0", "completion": text} for text in (hostile, "")])
    return folder


def test_programs_are_judged_and_pass_at_k_told(cli, files):
    options = ("--problems", "problems.jsonl", "--wall-s", "20")
    done = cli("judge", "samples.jsonl", *options, "--k", "1", "2", "5", "--out-file", "out.jsonl", "--json")
    assert done.code == 0
    assert json.loads(done.out) == {
        "pass@1": 0.25,
        "pass@2": 0.5,
        "verdicts": {"passed": 1, "failed": 2, "error": 1},
        "problems_without_completions": 1,
    }
    results = [json.loads(line) for line in (files / "out.jsonl").read_text().splitlines()]
    assert [row["result"] for row in results] == ["passed", "failed", "error", "failed"]
    shown = cli("judge", "samples.jsonl", *options)
    assert "pass@1 0.250" in shown.out and "1 of 3 problems have no completion" in shown.err


def test_the_native_tier_without_confinement_is_refused_unless_unsafe(cli, files, monkeypatch):
    from lmxlab.eval.confined import kernel

    monkeypatch.setattr(kernel, "seccomp_available", lambda: False)
    options = ("--problems", "problems.jsonl", "--tier", "native", "--wall-s", "20")
    done = cli("judge", "samples.jsonl", *options)
    assert done.code == 2 and "refuses to run programs unconfined" in done.err and "--unsafe" in done.err
    assert cli("judge", "samples.jsonl", *options, "--unsafe").code == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "t/1"}], "line 1 has no text in the field 'completion'"),
        ([{"completion": "x"}], "line 1 has no field 'task_id'"),
        ([{"task_id": "t/9", "completion": "x"}], "'t/9'; did you mean"),
        ([], "empty"),
    ],
)
def test_bad_samples_exit_2(cli, files, rows, message):
    write(files / "bad.jsonl", rows)
    done = cli("judge", "bad.jsonl", "--problems", "problems.jsonl")
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize("row", [{"task_id": "a"}, {**PROBLEMS[0], "test": 3}, {**PROBLEMS[0], "entry_point": "a b"}])
def test_bad_problems_exit_2(cli, files, row):
    write(files / "bad.jsonl", [PROBLEMS[0], row])
    done = cli("judge", "samples.jsonl", "--problems", "bad.jsonl")
    assert done.code == 2 and "bad.jsonl, line 2 is no problem" in done.err


def test_bad_options_exit_2(cli, files):
    assert cli("judge", "samples.jsonl", "--k", "0").code == 2
    done = cli("judge", "samples.jsonl", "--problems", "problems.jsonl", "--memory-mb", "1")
    assert done.code == 2 and "memory_mb is 1" in done.err
