"""The comparison as a library: its plan, pairing, sizes, interruption, crashes, and the verdict."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from lmxlab.data import DataConfig, PreparedData, TokenBatches, prepare
from lmxlab.errors import UserError
from lmxlab.experiments import recorder
from lmxlab.experiments.budget import count_parameters, flops_per_step
from lmxlab.experiments.compare import ComparisonResult, compare, result_of, run_folder
from lmxlab.experiments.comparison_plan import ComparisonPlan, make_plan
from lmxlab.experiments.interrupt import Interrupted, Stop
from lmxlab.experiments.loaded import build_model
from lmxlab.experiments.recorder import Clock, Observer, Progress
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import read_result
from lmxlab.experiments.tracking import ExperimentLog
from lmxlab.training.config import TrainConfig

OPTIM = TrainConfig(batch_size=4, compile_step=False, learning_rate=2e-3)
FLOPS = 2e8


@pytest.fixture(scope="session")
def pydocs() -> PreparedData:
    return prepare(DataConfig("pydocs"))


@pytest.fixture
def plan(pydocs: PreparedData) -> ComparisonPlan:
    """Two tiny designs, two seeds, some twenty steps each."""
    plan = make_plan(
        ["gpt_tiny", "llama_tiny"], DataConfig("pydocs"), pydocs, (0, 1), OPTIM, 16, FLOPS, eval_tokens=500
    )
    return dataclasses.replace(plan, specs=tuple(dataclasses.replace(spec, sample_tokens=5) for spec in plan.specs))


def run(plan: ComparisonPlan, folder: Path, prepared: PreparedData, **options: object) -> ComparisonResult:
    return compare(plan, folder / "c", prepared, ExperimentLog(folder / "results.jsonl"), **options)  # type: ignore[arg-type]


def test_named_designs_get_one_size_and_every_run_the_same_flops(pydocs: PreparedData) -> None:
    plan = make_plan(["gpt", "llama"], DataConfig("pydocs"), pydocs, (0, 1, 2), OPTIM, flops=1e11)
    sizes = [count_parameters(spec.model) for spec in plan.specs]
    assert abs(sizes[0] - sizes[1]) / sizes[0] <= 0.05
    for spec in plan.specs:
        spent = spec.optim.max_steps * flops_per_step(spec)
        assert 1e11 - flops_per_step(spec) < spent <= 1e11
    assert any("llama: d_ff" in note for note in plan.notes)


def test_a_file_is_taken_as_it_is_unless_asked(pydocs: PreparedData, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('seed = 7\n[model]\ndesign = "gpt"\nd_model = 64\nn_layers = 2\n[optim]\nlearning_rate = 0.5\n')
    sources = ["llama", str(path), "gpt_tiny"]
    plan = make_plan(sources, DataConfig("pydocs"), pydocs, (0,), OPTIM, flops=1e11)
    file = plan.specs[1]
    assert (file.model.block.d_model, file.optim.learning_rate, file.optim.batch_size) == (64, 0.5, 4)
    sizes = [count_parameters(spec.model) for spec in plan.specs]
    assert abs(sizes[0] - sizes[1]) / sizes[1] <= 0.05  # the named one meets the file
    assert any("seed in the file is not used" in note for note in plan.notes)
    assert any("gpt_tiny has" in note and "--match-all" in note for note in plan.notes)
    matched = make_plan(sources, DataConfig("pydocs"), pydocs, (0,), OPTIM, flops=1e11, match_all=True)
    sizes = [count_parameters(spec.model) for spec in matched.specs]
    assert max(sizes) / min(sizes) <= 1.05


@pytest.mark.parametrize(
    ("sources", "seeds", "flops", "message"),
    [
        (["gpt"], (0,), 1e9, "two designs or more"),
        (["gpt", "llama"], (0, 0), 1e9, "Seeds must be given and differ"),
        (["gpt", "llama"], (), 1e9, "Seeds must be given and differ"),
        (["gpt", "llama"], (0,), 1e3, "too small: one step of gpt"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(
    pydocs: PreparedData, sources: list[str], seeds: tuple[int, ...], flops: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(sources, DataConfig("pydocs"), pydocs, seeds, OPTIM, flops=flops)


def test_one_design_twice_has_two_names(pydocs: PreparedData) -> None:
    assert make_plan(["gpt", "gpt"], DataConfig("pydocs"), pydocs, (0,), OPTIM, flops=1e11).names == ["gpt", "gpt#2"]


def test_a_plan_survives_its_file(plan: ComparisonPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    assert ComparisonPlan.load(tmp_path) == plan
    with pytest.raises(UserError, match="no folder of a comparison"):
        ComparisonPlan.load(tmp_path / "elsewhere")


def test_a_seed_is_the_same_data_and_the_same_start(plan: ComparisonPlan, pydocs: PreparedData) -> None:
    assert [(spec.name, spec.seed) for spec in plan.runs()] == [
        ("gpt_tiny", 0),
        ("llama_tiny", 0),
        ("gpt_tiny", 1),
        ("llama_tiny", 1),
    ]
    first = {spec.name: next(TokenBatches(pydocs.train, 4, 16, seed=spec.seed))[0] for spec in plan.runs()[:2]}
    assert np.array_equal(first["gpt_tiny"], first["llama_tiny"])
    start, again, other = (build_model(plan.runs()[i]).embed.weight for i in (0, 0, 2))
    assert np.array_equal(start, again) and not np.array_equal(start, other)


def test_the_same_design_against_itself_shows_no_difference(pydocs: PreparedData, tmp_path: Path) -> None:
    plan = make_plan(["gpt_tiny", "gpt_tiny"], DataConfig("pydocs"), pydocs, (0, 1), OPTIM, 16, FLOPS, eval_tokens=500)
    result = run(plan, tmp_path, pydocs)
    a, b = result.designs
    assert a.values() == b.values() and a.values()[0] != a.values()[1]
    (verdict,) = result.verdicts
    assert verdict.better is None and "no difference shown" in verdict.sentence()


def test_a_comparison_records_every_run_and_the_result(
    plan: ComparisonPlan, pydocs: PreparedData, tmp_path: Path
) -> None:
    result = run(plan, tmp_path, pydocs)
    entries = ExperimentLog(tmp_path / "results.jsonl").load()
    assert [(e.experiment, e.seed) for e in entries] == [(spec.name, spec.seed) for spec in plan.runs()]
    assert entries[0].config["run"] == "c/gpt_tiny/seed-0"
    values = json.loads((tmp_path / "c" / "comparison.json").read_text())
    for design, row in zip(result.designs, values["designs"], strict=True):
        assert row["val_bpb"] == design.values() and row["val_bpb_mean"] == pytest.approx(np.mean(design.values()))
        assert row["flops"] <= FLOPS
    difference = result.designs[0].mean() - result.designs[1].mean()  # type: ignore[operator]
    assert values["verdicts"][0]["difference"] == pytest.approx(difference)
    assert all(e.metrics["curve"][-1][0] == e.total_flops for e in entries)


class StopAt(Observer):
    """Requests a stop at a step of one run, as Ctrl-C does."""

    def __init__(self, name: str, seed: int, step: int):
        self.stop, self._at = Stop(), (name, seed, step)
        self.steps: list[tuple[str, int, int]] = []

    def step(self, spec: RunSpec, progress: Progress) -> None:
        self.steps.append((spec.name, spec.seed, progress.step))
        if self.steps[-1] == self._at:
            self.stop.request()


def test_an_interrupted_comparison_goes_on_where_it_stopped(
    plan: ComparisonPlan, pydocs: PreparedData, tmp_path: Path
) -> None:
    whole = run(plan, tmp_path / "whole", pydocs)
    watcher = StopAt("gpt_tiny", 1, 5)
    with pytest.raises(Interrupted):
        run(plan, tmp_path, pydocs, observer=watcher, stop=watcher.stop)
    so_far = result_of(plan, tmp_path / "c")
    assert [[e is not None for e in design.entries] for design in so_far.designs] == [[True, False], [True, False]]
    again = StopAt("nobody", 0, 0)
    resumed = run(ComparisonPlan.load(tmp_path / "c"), tmp_path, pydocs, observer=again)
    assert again.steps[0] == ("gpt_tiny", 1, 6)  # neither finished runs nor finished steps are made again
    assert [design.values() for design in resumed.designs] == [design.values() for design in whole.designs]
    assert len(ExperimentLog(tmp_path / "results.jsonl").load()) == 4


def test_a_run_that_diverges_is_a_missing_value_not_the_end(
    plan: ComparisonPlan, pydocs: PreparedData, tmp_path: Path
) -> None:
    wild = dataclasses.replace(
        plan.specs[1].optim, optimizer="sgd", learning_rate=1e6, max_grad_norm=0.0, warmup_steps=0
    )
    plan = dataclasses.replace(plan, specs=(plan.specs[0], dataclasses.replace(plan.specs[1], optim=wild)))
    result = run(plan, tmp_path, pydocs)
    assert result.designs[1].values() == [None, None] and None not in result.designs[0].values()
    assert result.designs[1].mean() is None and result.designs[1].interval() is None
    assert result.verdicts[0].better is None
    statuses = [e.status for e in ExperimentLog(tmp_path / "results.jsonl").load()]
    assert statuses == ["keep", "crash", "keep", "crash"]


def test_a_run_that_died_between_its_folder_and_the_ledger_is_logged(
    plan: ComparisonPlan, pydocs: PreparedData, tmp_path: Path
) -> None:
    run(plan, tmp_path, pydocs)
    ledger = tmp_path / "results.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    run(plan, tmp_path, pydocs)
    assert ledger.read_text().splitlines() == [line.rstrip() for line in lines]


def test_a_torn_result_is_made_again(plan: ComparisonPlan, pydocs: PreparedData, tmp_path: Path) -> None:
    before = run(plan, tmp_path, pydocs)
    folder = run_folder(tmp_path / "c", plan.runs()[0])
    folder.result.write_text(folder.result.read_text()[:50])
    assert read_result(folder) is None
    assert [d.values() for d in run(plan, tmp_path, pydocs).designs] == [d.values() for d in before.designs]


def test_minutes_become_the_same_flops_for_every_design(pydocs: PreparedData) -> None:
    plan = make_plan(["gpt_tiny", "llama_tiny"], DataConfig("pydocs"), pydocs, (0, 1), OPTIM, 16, minutes=0.05)
    spent = [spec.optim.max_steps * flops_per_step(spec) for spec in plan.specs]
    assert all(
        plan.flops - flops_per_step(spec) < used <= plan.flops for spec, used in zip(plan.specs, spent, strict=True)
    )
    assert any("0.05 min" in note for note in plan.notes)


def test_nested_phases_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder.time, "perf_counter", iter([0.0, 1.0, 8.0, 10.0]).__next__)
    clock = Clock()
    with clock("outer"), clock("inner"):
        pass
    assert clock.seconds == {"inner": 7.0, "outer": 3.0}
