"""Rankings and verdicts: a claim, its interval and its sentence never contradict each other."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from lmxlab.errors import UserError
from lmxlab.experiments import analysis
from lmxlab.experiments.analysis import _holm_levels, compare_experiments, decide, power, seeds_needed, simplicity_score
from lmxlab.experiments.statistics import Comparison, hedges_correction, holm, paired_comparison
from lmxlab.experiments.tracking import ExperimentLog, LogEntry

pytestmark = pytest.mark.filterwarnings("error")

GPT, LLAMA = [1.52, 1.55, 1.53], [1.41, 1.43, 1.44]


@pytest.fixture
def log(tmp_path):
    return ExperimentLog(tmp_path / "results.jsonl")


def test_kept_runs_are_ranked_and_a_missing_metric_comes_last_as_none(log):
    log.log(LogEntry(experiment="missing", metrics={"acc": 0.5}))
    log.log(LogEntry(experiment="worse", val_bpb=1.5, param_count=10, wall_time_s=2.5, description="d"))
    log.log(LogEntry(experiment="discarded", val_bpb=1.0, status="discard"))
    log.log(LogEntry(experiment="diverged", val_bpb=math.nan))
    log.log(LogEntry(experiment="better", val_bpb=1.2))
    rows = compare_experiments(log)
    assert [(row["experiment"], row["val_bpb"]) for row in rows] == [
        ("better", 1.2),
        ("worse", 1.5),
        ("missing", None),
        ("diverged", None),
    ]
    assert rows[1] == {"experiment": "worse", "val_bpb": 1.5, "param_count": 10, "wall_time_s": 2.5, "description": "d"}
    assert compare_experiments(log, "acc")[0] == {
        "experiment": "missing",
        "acc": 0.5,
        "param_count": None,
        "wall_time_s": None,
        "description": "",
    }


def test_simplicity_is_the_improvement_times_the_share_of_parameters_saved():
    assert simplicity_score(LogEntry(val_bpb=1.2, param_count=50), 100, 1.5) == pytest.approx(0.6)
    assert simplicity_score(LogEntry(val_bpb=1.7, param_count=200), 100, 1.5) == pytest.approx(-0.1)
    assert simplicity_score(LogEntry(metrics={"m": 0.0}, param_count=100), 100, 1.0, metric="m") == 1.0
    assert math.isnan(simplicity_score(LogEntry(param_count=50), 100, 1.5)), "a missing metric is no improvement of 1.5"
    assert math.isnan(simplicity_score(LogEntry(val_bpb=1.2), 100, 1.5))


def test_two_designs_are_judged_by_the_plain_paired_t_test():
    (verdict,) = decide({"gpt": GPT, "llama": LLAMA})
    expected = scipy.stats.ttest_rel(GPT, LLAMA)
    assert (verdict.a, verdict.b, verdict.better) == ("gpt", "llama", "llama")
    assert verdict.p_adjusted == verdict.p == pytest.approx(expected.pvalue)
    assert verdict.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (verdict.confidence, verdict.n_seeds, verdict.comparison) == (0.95, 3, paired_comparison(GPT, LLAMA))
    assert verdict.difference == pytest.approx(0.32 / 3)
    assert verdict.effect_size == verdict.comparison.effect_size > 0


def test_the_better_design_does_not_depend_on_order_and_follows_the_direction_of_the_metric():
    assert decide({"llama": LLAMA, "gpt": GPT})[0].better == "llama"
    assert decide({"gpt": GPT, "llama": LLAMA}, lower_is_better=False)[0].better == "gpt"
    assert decide({"gpt": GPT, "llama": LLAMA}, alpha=0.001)[0].better is None


def test_sentences_say_what_was_shown():
    def sentence(a, b, **options):
        return decide({"a": a, "b": b}, **options)[0].sentence("val_bpb")

    shown = "b is better than a: val_bpb 0.107 lower (95% interval 0.0687 to 0.145, p = 0.00677, 3 paired seeds)"
    assert sentence(GPT, LLAMA) == shown
    assert decide({"b": LLAMA, "a": GPT})[0].sentence("val_bpb") == shown
    assert sentence(LLAMA, GPT, lower_is_better=False).startswith("b is better than a: val_bpb 0.107 higher (95%")
    nothing = sentence([1.0, 1.1, 1.3], [1.1, 1.1, 1.1])
    assert nothing.startswith(
        "no difference shown between a and b: val_bpb differs by 0.0333 (95% interval -0.346 to 0.413, p"
    )
    assert nothing.endswith(" seeds would show a difference of this size")
    assert "1 of 3 did" in sentence([1.0, None, 1.2], [1.0, 1.1, None])
    assert "2 of 3 seeds measured both" in sentence([1.0, 1.3, 1.2], [1.0, 1.1, None])
    assert "the mean val_bpb is equal (2 paired seeds)" in sentence([1.0, 1.0], [1.0, 1.0])
    assert "every seed gave the same -1 val_bpb" in sentence([1.0, 1.0], [2.0, 2.0])
    for a, b in [([1.0], [9.0]), ([1.0, 1.0], [2.0, 2.0]), ([], []), ([None] * 3, [1.0, 2.0, 3.0])]:
        assert sentence(a, b).startswith("no difference shown between a and b: ")
        assert "nan" not in sentence(a, b)


def test_many_designs_are_corrected_by_holm_over_all_pairs():
    rng = np.random.default_rng(3)
    designs = {name: list(rng.normal(shift, 0.2, 5)) for name, shift in [("a", 0), ("b", 3), ("c", 0.2), ("d", 0.6)]}
    verdicts = decide(designs)
    assert [(v.a, v.b) for v in verdicts] == list(itertools.combinations("abcd", 2))
    raw = [scipy.stats.ttest_rel(designs[v.a], designs[v.b]).pvalue for v in verdicts]
    assert [v.p for v in verdicts] == pytest.approx(raw)
    assert [v.p_adjusted for v in verdicts] == pytest.approx(holm(raw))
    assert {v.better for v in verdicts} > {None, "a"}, "the case holds both outcomes"


@pytest.mark.parametrize("seed", range(40))
def test_the_interval_leaves_out_zero_exactly_when_a_difference_is_claimed(seed):
    rng = np.random.default_rng(seed)
    designs = {name: list(rng.normal(rng.normal(0, 2), 1, 4)) for name in "abcd"}
    verdicts = decide(designs, alpha=0.1)
    for v in verdicts:
        assert (v.interval.low > 0 or v.interval.high < 0) == (v.better is not None) == (v.p_adjusted <= 0.1)
        assert v.interval.low < v.difference < v.interval.high
        assert 0.9 - 1e-12 < v.confidence < 1 - 0.1 / 6 + 1e-12
        if v.better:
            other = v.b if v.better == v.a else v.a
            assert np.mean(designs[v.better]) < np.mean(designs[other])


def test_the_level_of_a_pair_is_the_one_that_holms_procedure_stopped_at():
    assert _holm_levels([0.03, 0.03, 0.03], alpha=0.05) == pytest.approx([0.05 / 3] * 3), "stops at the first"
    assert _holm_levels([0.04, 0.001, 0.03], alpha=0.05) == pytest.approx([0.05 / 2, 0.05 / 3, 0.05 / 2])
    assert _holm_levels([0.001, math.nan, 0.002], alpha=0.05) == pytest.approx([0.05 / 3, 0.05 / 3, 0.05 / 2])


def test_among_many_pairs_more_seeds_are_needed():
    designs = {"a": [1.0, 1.1, 1.3], "b": [1.1, 1.3, 1.4], "c": [1.2, 1.1, 1.25]}
    verdict = decide(designs)[0]
    assert verdict.confidence == pytest.approx(1 - 0.05 / 3)
    assert verdict.seeds_needed == seeds_needed(verdict.comparison, alpha=0.05 / 3) > seeds_needed(verdict.comparison)


def test_a_run_that_failed_costs_its_pairs_and_wins_nothing():
    with_gap = decide({"a": [None, *GPT], "b": [0.0, *LLAMA], "c": [math.nan] * 4})
    assert with_gap[0].comparison == paired_comparison(GPT, LLAMA)
    assert with_gap[0].p_adjusted == pytest.approx(3 * with_gap[0].p), "pairs that could not be judged still count"
    for verdict in with_gap[1:]:
        assert verdict.better is None and math.isnan(verdict.p_adjusted) and math.isnan(verdict.interval.low)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="at least 2 designs, got \\['a'\\]"):
        decide({"a": GPT})
    with pytest.raises(UserError, match="got 3 and 2"):
        decide({"a": GPT, "b": [1.0, 2.0]})
    for alpha in (0.0, 1.0, 5):
        with pytest.raises(UserError, match="alpha lies between 0 and 1"):
            decide({"a": GPT, "b": LLAMA}, alpha=alpha)


@pytest.mark.parametrize(("d_z", "n", "alpha"), [(0.5, 2, 0.05), (1.0, 5, 0.05), (2.0, 3, 0.01), (-1.0, 9, 0.05)])
def test_power_is_the_noncentral_t_of_scipy(d_z, n, alpha):
    law = scipy.stats.nct(n - 1, d_z * math.sqrt(n))
    critical = scipy.stats.t.ppf(1 - alpha / 2, n - 1)
    assert power(d_z, n, alpha) == pytest.approx(law.sf(critical) + law.cdf(-critical), abs=1e-5)


def test_power_of_no_effect_is_alpha_and_of_a_huge_one_is_1():
    assert power(0.0, 5) == pytest.approx(0.05, abs=1e-5)
    assert power(1e3, 5) == 1.0


def test_power_of_ten_pairs_is_the_one_in_cohens_tables():
    assert power(1.0, 10) == pytest.approx(0.80, abs=0.005)
    assert power(0.5, 34) == pytest.approx(0.81, abs=0.005)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_seeds_needed_is_the_smallest_number_with_the_power(alpha):
    comparison = paired_comparison([1.0, 1.1, 1.3, 1.2, 1.15], [1.1, 1.1, 1.25, 1.4, 1.2])
    n = seeds_needed(comparison, alpha)
    d_z = abs(comparison.difference) / (comparison.standard_error * math.sqrt(5)) * 0.7979  # Hedges' J(4)
    assert power(d_z, n - 1, alpha) < 0.8 <= power(d_z, n, alpha)


def test_seeds_needed_is_unknown_without_noise_or_with_two_pairs_and_not_counted_past_a_thousand():
    assert seeds_needed(paired_comparison([1.0, 1.2], [1.1, 1.4])) is None
    assert seeds_needed(paired_comparison([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])) is None
    assert seeds_needed(paired_comparison([0.0, 1.0, 2.0], [1.0, 2.0, 0.0])) is None
    assert seeds_needed(paired_comparison([0.0, 0.001], [5.0, 5.0])) is None
    assert seeds_needed(paired_comparison([0.0, 0.001, 0.0], [5.0, 5.0, 5.0])) == 2


def test_the_names_of_the_public_api_are_here():
    for name in ("cohens_d", "compare_experiments", "compute_statistics", "confidence_interval", "simplicity_score"):
        assert name in analysis.__all__ and callable(getattr(analysis, name))


def test_scipy_stats_is_not_imported_for_a_verdict():
    code = (
        "import sys; from lmxlab.experiments.analysis import decide; assert 'scipy' not in sys.modules;"
        "decide({'a': [1., 2., 4.], 'b': [1., 3., 2.]})[0].sentence(); assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_power_is_a_chance_that_grows_with_every_seed() -> None:
    for d_z in (0.0, 0.5, 2.0, 20.0):
        chances = [power(d_z, n) for n in (2, 3, 10, 100, 500)]
        assert all(0 <= chance <= 1 for chance in chances) and chances == sorted(chances) or d_z == 0
    far = Comparison(difference=8.8758, standard_error=1 / math.sqrt(30), df=29, p=0.1, effect_size=0.0, n=30)
    needed = seeds_needed(far)
    assert needed is not None and power(8.8758 * hedges_correction(29), needed) >= 0.8
    assert power(8.8758 * hedges_correction(29), needed - 1) < 0.8
