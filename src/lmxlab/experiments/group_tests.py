"""Tests for values that share no seeds, by ranks, the bootstrap, variance analysis; and the false discovery rate.

Missing values are left out and never counted as 0, as in `statistics`. scipy computes all of them.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmxlab.errors import UserError
from lmxlab.experiments.statistics import Interval, Values, measured, std


class RankTest(NamedTuple):
    """`u` of group a, two-sided `p`, and `superiority`: the chance that a value of a exceeds one of b (ties half)."""

    u: float
    p: float
    superiority: float


def mann_whitney(a: Values, b: Values) -> RankTest:
    """Mann-Whitney U test, exact for small groups without ties; all NaN when a group is empty."""
    x, y = measured(a), measured(b)
    if not (x.size and y.size):
        return RankTest(math.nan, math.nan, math.nan)
    from scipy.stats import mannwhitneyu

    u, p = mannwhitneyu(x, y, alternative="two-sided")
    return RankTest(float(u), float(p), float(u) / (x.size * y.size))


def bootstrap_interval(
    values: Values,
    confidence: float = 0.95,
    statistic: Callable[..., Any] = np.mean,
    n_resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap interval of a statistic that takes `axis=` (Efron 1987); too narrow below about ten values.

    (x, x) when the values have no spread, NaN for no values.
    """
    x = measured(values)
    if not x.size:
        return Interval(math.nan, math.nan)
    if std(x) > 0:
        from scipy.stats import bootstrap

        result = bootstrap(
            (x,), statistic, confidence_level=confidence, n_resamples=n_resamples, method="BCa", rng=seed
        )
        return Interval(float(result.confidence_interval.low), float(result.confidence_interval.high))
    only = float(statistic(x, axis=-1))
    return Interval(only, only)


class TukeyPair(NamedTuple):
    """mean(a) - mean(b), its simultaneous interval, and its p-value among all pairs."""

    a: str
    b: str
    difference: float
    interval: Interval
    p: float


class Anova(NamedTuple):
    """F statistic and p-value of "all means are equal", and the pairs by Tukey's honest significant difference."""

    f: float
    p: float
    pairs: list[TukeyPair]


def anova(groups: Mapping[str, Values], confidence: float = 0.95) -> Anova:
    """One-way analysis of variance with Tukey's HSD after it; for groups of one common variance that share no seeds.

    Raises:
        UserError: fewer than two groups, a group with fewer than two values, or no spread in any group.
    """
    samples = [measured(values) for values in groups.values()]
    if len(samples) < 2 or min(x.size for x in samples) < 2 or not any(std(x) for x in samples):
        sizes = {name: x.size for name, x in zip(groups, samples, strict=True)}
        raise UserError(
            f"An analysis of variance takes 2 groups or more of 2 or more different values, got sizes {sizes}"
        )
    from scipy.stats import f_oneway, tukey_hsd

    overall, tukey = f_oneway(*samples), tukey_hsd(*samples)
    intervals = tukey.confidence_interval(confidence)
    pairs = [
        TukeyPair(
            a,
            b,
            float(tukey.statistic[i, j]),
            Interval(float(intervals.low[i, j]), float(intervals.high[i, j])),
            float(tukey.pvalue[i, j]),
        )
        for (i, a), (j, b) in itertools.combinations(enumerate(groups), 2)
    ]
    return Anova(float(overall.statistic), float(overall.pvalue), pairs)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's (1995) adjusted p-values: those <= q hold a share of at most q false claims on average.

    A test without a p (NaN) keeps its place among the tests and stays NaN.
    """
    if not len(p_values):
        return []
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control([1.0 if math.isnan(p) else p for p in p_values], method="bh")
    return [math.nan if math.isnan(p) else float(q) for p, q in zip(p_values, adjusted, strict=True)]
