"""Statistics against scipy, closed forms and printed tables; what cannot be known is NaN, without a warning."""

import math

import numpy as np
import pytest
import scipy.stats

from lmxlab.errors import UserError
from lmxlab.experiments.group_tests import anova, benjamini_hochberg, bootstrap_interval, mann_whitney
from lmxlab.experiments.statistics import (
    cohens_d,
    compute_statistics,
    confidence_interval,
    hedges_correction,
    hedges_g,
    holm,
    paired_comparison,
    welch_test,
)

pytestmark = pytest.mark.filterwarnings("error")  # scipy warns about tiny or constant samples: none may leak

A = [1.52, 1.55, 1.53, 1.61, 1.40]
B = [1.41, 1.47, 1.44, 1.52, 1.45]
MISSING = [None, math.nan, math.inf, -math.inf]


def test_statistics_of_a_list():
    stats = compute_statistics([1.0, 2.0, 4.0])
    assert stats == pytest.approx({"mean": 7 / 3, "std": math.sqrt(7 / 3), "min": 1.0, "max": 4.0, "n": 3})
    assert compute_statistics([5.0]) == {"mean": 5.0, "std": 0.0, "min": 5.0, "max": 5.0, "n": 1}
    assert compute_statistics([]) == {"mean": 0, "std": 0, "min": 0, "max": 0, "n": 0}
    assert compute_statistics([0.1] * 7)["std"] == 0.0


@pytest.mark.parametrize("missing", MISSING)
def test_a_missing_value_counts_nowhere(missing):
    assert compute_statistics([1.0, missing, 3.0]) == compute_statistics([1.0, 3.0])
    assert confidence_interval([1.0, missing, 3.0]) == confidence_interval([1.0, 3.0])
    assert cohens_d([1.0, missing, 3.0], B) == cohens_d([1.0, 3.0], B)
    assert welch_test([1.0, missing, 3.0], B) == welch_test([1.0, 3.0], B)
    assert mann_whitney([1.0, missing, 3.0], B) == mann_whitney([1.0, 3.0], B)
    assert bootstrap_interval([1.0, missing, 3.0]) == bootstrap_interval([1.0, 3.0])
    assert anova({"a": [*A, missing], "b": B}) == anova({"a": A, "b": B})
    assert paired_comparison([missing, *A], [1.0, *B]) == paired_comparison(A, B)
    assert paired_comparison([*A, 1.0], [*B, missing]) == paired_comparison(A, B)
    assert compute_statistics([missing])["n"] == 0


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_confidence_interval_is_student_t_at_any_confidence(n, confidence):
    x = np.array(A[:n])
    expected = scipy.stats.t.interval(confidence, n - 1, loc=x.mean(), scale=scipy.stats.sem(x))
    assert confidence_interval(list(x), confidence) == pytest.approx(expected, rel=1e-12)


def test_the_confidence_interval_holds_the_tabulated_quantile_and_its_degenerate_values():
    low, high = confidence_interval([0.0, 2.0])
    assert (high - low) / 2 == pytest.approx(12.706, abs=5e-4)  # t(0.975; 1), every table
    assert confidence_interval([3.5]) == (3.5, 3.5)
    assert confidence_interval([]) == (0.0, 0.0)
    assert confidence_interval([2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(UserError, match="between 0 and 1, got"):
        confidence_interval(A, confidence)


def test_cohens_d_pools_the_variances_by_their_degrees_of_freedom():
    assert cohens_d([2.0, 4.0], [1.0, 2.0, 3.0]) == pytest.approx((3 - 2) / math.sqrt((1 * 2 + 2 * 1) / 3))
    assert cohens_d([1.0, 2.0, 3.0], [2.0, 4.0]) == pytest.approx(-cohens_d([2.0, 4.0], [1.0, 2.0, 3.0]))
    assert cohens_d([1.0], A) == cohens_d(A, []) == 0.0
    assert cohens_d([0.1] * 3, [0.7] * 3) == 0.0


@pytest.mark.parametrize(("df", "j"), [(2, 0.5642), (3, 0.7236), (4, 0.7979), (10, 0.9228), (50, 0.9849)])
def test_hedges_correction_is_the_exact_one_of_his_table(df, j):
    assert hedges_correction(df) == pytest.approx(j, abs=6e-5)  # Hedges 1981, table 1


def test_hedges_g_is_unbiased_over_three_seeds():
    rng = np.random.default_rng(0)
    g = [hedges_g(rng.standard_normal(3) + 1, rng.standard_normal(3)) for _ in range(10_000)]
    assert np.mean(g) == pytest.approx(1.0, abs=3 * np.std(g) / 100)
    assert math.isnan(hedges_correction(1)) and math.isnan(hedges_correction(0))
    assert hedges_g([1.0, 2.0], [2.0, 1.0]) == 0.0
    assert math.isnan(hedges_g([1.0], [2.0])) and math.isnan(hedges_g([1.0, 1.0], [2.0, 2.0]))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_paired_comparison_is_the_paired_t_test(n):
    expected = scipy.stats.ttest_rel(A[:n], B[:n])
    result = paired_comparison(A[:n], B[:n])
    assert result.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.difference == pytest.approx(np.mean(A[:n]) - np.mean(B[:n]))
    assert result.difference / result.standard_error == pytest.approx(expected.statistic)
    assert (result.n, result.df) == (n, n - 1)
    for confidence in (0.95, 0.99):
        assert result.interval(confidence) == pytest.approx(tuple(expected.confidence_interval(confidence)))
    assert result.effect_size == pytest.approx(cohens_d(A[:n], B[:n]) * hedges_correction(2 * n - 2))


def test_pairing_removes_what_the_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0])
    a, b = list(seeds + [0.1, 0.2, 0.15]), list(seeds + [1.1, 1.25, 1.1])
    assert paired_comparison(a, b).p < 0.01 < 0.9 < welch_test(a, b).p
    assert paired_comparison(a, b[::-1]).p > 0.5


def test_welch_is_scipys_test_with_unequal_variances():
    expected = scipy.stats.ttest_ind(A, B[:3], equal_var=False)
    result = welch_test(A, B[:3])
    assert (result.p, result.df) == pytest.approx((expected.pvalue, expected.df))
    assert result.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert (result.n, result.difference) == (3, pytest.approx(np.mean(A) - np.mean(B[:3])))


def has_no_judgement(result, difference, n):
    assert math.isnan(result.p) and all(math.isnan(end) for end in result.interval())
    assert (result.difference, result.n) == (pytest.approx(difference, nan_ok=True), n)


@pytest.mark.parametrize("test", [paired_comparison, welch_test])
def test_one_value_or_none_has_no_p_no_interval_and_no_effect_size(test):
    has_no_judgement(test([1.0], [3.0]), -2.0, 1)
    has_no_judgement(test([], []), math.nan, 0)
    assert math.isnan(test([1.0], [3.0]).effect_size) and math.isnan(test([], []).effect_size)


@pytest.mark.parametrize("test", [paired_comparison, welch_test])
@pytest.mark.parametrize("value", [0.0, 1.5, 0.1 + 0.2])
def test_equal_values_without_spread_have_p_1(test, value):
    result = test([value] * 3, [value] * 3)
    assert (result.p, result.difference, result.interval(), result.effect_size) == (1.0, 0.0, (0.0, 0.0), 0.0)


def test_a_difference_without_any_noise_cannot_be_judged():
    has_no_judgement(paired_comparison([1.1, 1.2, 1.3], [1.2, 1.3, 1.4]), -0.1, 3)  # equal but for rounding
    has_no_judgement(paired_comparison([1.0, 1.0], [2.0, 2.0]), -1.0, 2)
    has_no_judgement(welch_test([1.0, 1.0], [2.0, 2.0]), -1.0, 2)
    identical = paired_comparison(A, A)
    assert (identical.p, identical.difference, identical.interval(), identical.effect_size) == (
        1.0,
        0.0,
        (0.0, 0.0),
        0.0,
    )


def test_pairs_must_be_pairs():
    with pytest.raises(UserError, match="come in pairs, got 5 and 3"):
        paired_comparison(A, B[:3])


def test_mann_whitney_is_exact_for_small_groups():
    assert mann_whitney([1, 2, 3], [4, 5, 6]).p == pytest.approx(2 / math.comb(6, 3))
    result = mann_whitney([4.0, 6.0], [5.0, 1.0, 2.0])
    assert (result.u, result.superiority) == (5.0, 5 / 6)
    assert mann_whitney([1.0, 1.0], [1.0, 1.0]).p == 1.0
    assert all(math.isnan(value) for value in mann_whitney([], [1.0]))


def test_the_bootstrap_interval_is_bca_and_repeats():
    x = list(np.random.default_rng(1).exponential(size=30))
    low, high = bootstrap_interval(x)
    expected = scipy.stats.bootstrap((x,), np.mean, method="BCa", n_resamples=9999, rng=0).confidence_interval
    assert (low, high) == tuple(expected)
    assert high - np.mean(x) > np.mean(x) - low, "skewed to the right, as the sample is"
    assert bootstrap_interval(x, seed=0) != bootstrap_interval(x, seed=1)
    assert bootstrap_interval(x, 0.5).high < high
    assert bootstrap_interval(x, statistic=np.median) != (low, high)
    assert bootstrap_interval([2.0]) == bootstrap_interval([2.0, 2.0]) == (2.0, 2.0)
    assert all(math.isnan(end) for end in bootstrap_interval([]))
    assert bootstrap_interval([1.0, 2.0]) == (1.0, 2.0)


def test_anova_and_tukey_give_the_worked_example_and_scipys_pairs():
    groups = {"a": [6, 8, 4, 5, 3, 4], "b": [8, 12, 9, 11, 6, 8], "c": [13, 9, 11, 8, 7, 12]}
    result = anova(groups, confidence=0.9)
    assert result.f == pytest.approx(9.3, abs=0.05)  # the example of Wikipedia's "One-way analysis of variance"
    assert result.p == pytest.approx(0.0024, abs=5e-5)
    tukey = scipy.stats.tukey_hsd(*groups.values())
    assert [(pair.a, pair.b) for pair in result.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.p for pair in result.pairs] == [tukey.pvalue[0, 1], tukey.pvalue[0, 2], tukey.pvalue[1, 2]]
    assert result.pairs[1].difference == pytest.approx(5 - 10)
    assert result.pairs[1].interval.high == tukey.confidence_interval(0.9).high[0, 2]
    equal_pair = anova({"a": A, "b": B})
    assert equal_pair.p == pytest.approx(equal_pair.pairs[0].p) == pytest.approx(scipy.stats.ttest_ind(A, B).pvalue)


@pytest.mark.parametrize("groups", [{"a": A}, {"a": A, "b": [1.0]}, {"a": [1.0, 1.0], "b": [2.0, 2.0]}, {}])
def test_anova_refuses_what_it_cannot_judge(groups):
    with pytest.raises(UserError, match="2 groups or more"):
        anova(groups)


def test_holm_multiplies_by_the_tests_that_remain():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the example of Wikipedia
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02] and holm([]) == []
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.03) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.04)


def test_benjamini_hochberg_takes_the_smallest_p_m_over_rank_from_above():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    adjusted = benjamini_hochberg([math.nan, 0.01])
    assert math.isnan(adjusted[0]) and adjusted[1] == pytest.approx(0.02)
    assert benjamini_hochberg([]) == []
