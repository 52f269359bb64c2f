"""The ledger gives back what was written: the best, the counts, torn lines, values that JSON does not have."""

import json
import logging
import math
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.experiments.tracking import ExperimentLog, LogEntry

from .conftest import KEPT


def test_defaults_and_order_of_the_fields_are_the_public_ones():
    entry = LogEntry("e", "c", "discard", 1.0, 2.0, 3.0, 4, 5.0, 6.0, 7.0, "d", {"a": 1}, {"b": 2}, 8.0, 9)
    assert (entry.description, entry.config, entry.metrics, entry.timestamp, entry.seed) == (
        "d",
        {"a": 1},
        {"b": 2},
        8.0,
        9,
    )
    assert (LogEntry().status, LogEntry().val_bpb, LogEntry().seed) == ("keep", 0.0, 42)
    assert abs(LogEntry().timestamp - time.time()) < 5


def test_entries_come_back_as_they_were_written_and_in_order(log):
    second = LogEntry(experiment="é\u2028\n", status="crash", seed=7, description="two\nlines")
    log.log(KEPT)
    log.log(second)
    assert log.load() == [KEPT, second]
    assert log.problems == []
    assert log.path.read_bytes().count(b"\n") == 2


def test_an_absent_ledger_is_empty(log):
    assert log.load() == []
    assert log.summary() == {"total": 0}
    assert log.best() is None


def test_the_default_path_and_missing_parent_folders(tmp_path):
    assert ExperimentLog().path == Path("results.jsonl")
    nested = ExperimentLog(str(tmp_path / "a" / "b" / "r.jsonl"))
    nested.log(KEPT)
    assert nested.load() == [KEPT]


def test_summary_counts_each_status_and_takes_the_best_kept(log):
    for status, bpb in [
        ("keep", 1.5),
        ("keep", 1.2),
        ("discard", 0.9),
        ("crash", 0.0),
        ("keep", math.nan),
        ("keep", 0.0),
    ]:
        log.log(LogEntry(status=status, val_bpb=bpb))
    assert log.summary() == {"total": 6, "kept": 4, "discarded": 1, "crashed": 1, "best_val_bpb": 1.2}


def test_best_is_the_lowest_or_the_highest_kept_value_and_the_earlier_of_equals(log):
    for name, status, bpb, acc in [
        ("a", "keep", 1.5, 0.2),
        ("b", "keep", 1.2, 0.1),
        ("c", "discard", 0.5, 0.9),
        ("d", "keep", 1.2, 0.2),
    ]:
        log.log(LogEntry(experiment=name, status=status, val_bpb=bpb, metrics={"acc": acc}))
    assert log.best().experiment == "b"
    assert log.best("acc", lower_is_better=False).experiment == "a"
    assert log.best("acc").experiment == "b"
    assert log.best("never_measured") is None


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, "text", True])
def test_a_missing_or_broken_metric_never_wins(log, bad, lower):
    log.log(LogEntry(experiment="bad", metrics={"m": bad}))
    log.log(LogEntry(experiment="absent"))
    log.log(LogEntry(experiment="good", metrics={"m": 0.5}))
    assert log.best("m", lower_is_better=lower).experiment == "good"


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf, -math.inf])
def test_a_measurement_that_was_not_taken_is_no_number_after_a_round_trip(log, bad):
    log.log(LogEntry(experiment="bad", val_bpb=bad, total_flops=bad))
    log.log(KEPT)
    assert log.best() == KEPT
    loaded = log.load()[0]
    assert loaded.value("val_bpb") is None and loaded.value("total_flops") is None
    assert loaded.val_bpb == 0.0 if bad == 0.0 else math.isnan(loaded.val_bpb)


def test_a_measured_zero_in_metrics_is_a_number(log):
    log.log(KEPT)
    assert log.load()[0].value("acc") == 0.0
    assert log.best("acc") == KEPT


def test_lines_are_strict_json_and_leave_out_what_was_not_measured(log):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    log.log(LogEntry(val_bpb=math.nan, train_loss=2.0, metrics={"x": [math.inf, {"y": -math.inf}], "z": 1.0}))
    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert row["val_bpb"] is None
    assert row["metrics"] == {"x": [None, {"y": None}], "z": 1.0}
    assert row["train_loss"] == 2.0 and row["seed"] == 42 and row["status"] == "keep"
    assert {"val_loss", "total_flops", "param_count"}.isdisjoint(row)
    assert log.load()[0].metrics == {"x": [None, {"y": None}], "z": 1.0}


def test_values_of_arrays_paths_and_strange_objects_are_written(log):
    metrics = {
        "np": np.float32(0.5),
        "int": np.int64(3),
        "mx": mx.array([1, 2]),
        "path": Path("a/b"),
        (5, 6): (1, 2),
        "o": KEPT,
    }
    log.log(LogEntry(val_bpb=np.float64(1.25), param_count=np.int64(7), metrics=metrics))
    entry = log.load()[0]
    assert (entry.val_bpb, entry.param_count) == (1.25, 7)
    assert entry.metrics["np"] == 0.5 and entry.metrics["int"] == 3 and entry.metrics["mx"] == [1, 2]
    assert (
        entry.metrics["path"] == "a/b"
        and entry.metrics["(5, 6)"] == [1, 2]
        and entry.metrics["o"]["commit"] == "0123abcd"
    )


def test_unknown_fields_survive_load_and_append(log, tmp_path):
    row = {"experiment": "new", "val_bpb": 1.0, "timestamp": 3.0, "from_the_future": {"k": [1]}, "extra": "e", "gpu": 2}
    log.path.write_text(json.dumps(row) + "\n")
    entry = log.load()[0]
    assert entry.extra == {"from_the_future": {"k": [1]}, "extra": "e", "gpu": 2}
    assert entry.value("gpu") == 2.0
    copy = ExperimentLog(tmp_path / "copy.jsonl")
    copy.log(entry)
    assert json.loads(copy.path.read_text()).items() >= row.items()
    assert copy.load() == [entry]


def test_a_line_without_a_time_was_not_written_now(log):
    log.path.write_text('{"val_bpb": 1.0}\n')
    assert math.isnan(log.load()[0].timestamp)


TORN = [
    b'{"experiment": "torn", "val',
    b'{"a": 1}\x00\x00',
    b"\x00" * 9,
    b"[1, 2]",
    b"7",
    b'"x"',
    b"\xff\xfe{}",
    b'{"metrics": [1]}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("torn", TORN, ids=lambda line: repr(line[:12]))
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_torn_line_is_reported_and_skipped_and_the_next_append_is_not_glued_to_it(log, caplog, torn, end):
    log.log(KEPT)
    with log.path.open("ab") as file:
        file.write(torn + end)
    with caplog.at_level(logging.WARNING):
        assert log.load() == [KEPT]
    assert len(log.problems) == 1 and "line 2" in log.problems[0]
    assert len(caplog.records) == 1
    log.log(KEPT)
    assert log.load() == [KEPT, KEPT]
    assert len(log.problems) == 1
    assert len(caplog.records) == 1, "the same problem warns once"
    assert torn in log.path.read_bytes(), "evidence is kept"


def test_a_whole_last_line_without_its_newline_counts(log):
    log.path.write_text('{"experiment": "edited by hand", "val_bpb": 1.0}')
    assert log.load()[0].experiment == "edited by hand" and log.problems == []
    log.log(KEPT)
    assert [e.experiment for e in log.load()] == ["edited by hand", "gpt"]
    assert log.problems == []


def test_a_large_ledger_reads_at_about_the_speed_of_json(log):
    log.log(KEPT)
    log.path.write_bytes(log.path.read_bytes() * 20_000)
    content = log.path.read_text().splitlines()
    start = time.perf_counter()
    for line in content:
        json.loads(line)
    json_s = time.perf_counter() - start
    start = time.perf_counter()
    assert len(log.load()) == 20_000
    assert time.perf_counter() - start < 8 * json_s + 0.2
