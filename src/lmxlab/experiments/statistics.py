"""Statistics of a handful of seeds: intervals, t-tests and Holm's correction. scipy computes, Holm and Hedges are ours.

Every function leaves out missing values (None, NaN, infinite) and never counts them as 0. What cannot be known from the
values given is NaN: a p-value of one pair, the effect size of values without spread.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmxlab.errors import UserError

# scipy is imported in the functions: scipy.stats alone takes 0.5 s, which no other command should pay.

Array = NDArray[np.float64]
Values = Sequence[float | None] | Array
ROUNDING = 8 * np.finfo(np.float64).eps  # a spread below this share of the values is rounding, not noise


class Interval(NamedTuple):
    low: float
    high: float


def measured(values: Iterable[float | None]) -> Array:
    """The finite values, in order."""
    array = _floats(values)
    return array[np.isfinite(array)]


def _floats(values: Iterable[float | None]) -> Array:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def compute_statistics(values: Values) -> dict[str, float]:
    """`mean`, `std` (n - 1; 0 for one value), `min`, `max` and `n`; all 0 for an empty list."""
    x = measured(values)
    if not x.size:
        return dict.fromkeys(("mean", "std", "min", "max", "n"), 0)
    return {"mean": float(x.mean()), "std": std(x), "min": float(x.min()), "max": float(x.max()), "n": x.size}


def confidence_interval(values: Values, confidence: float = 0.95) -> tuple[float, float]:
    """Student-t interval for the mean: (x, x) for one value, (0, 0) for none.

    >>> low, high = confidence_interval([1.0, 2.0, 3.0])
    >>> round(low, 4), round(high, 4)
    (-0.4841, 4.4841)
    """
    x = measured(values)
    if not x.size:
        return (0.0, 0.0)
    mean, half = float(x.mean()), 0.0
    if x.size > 1:
        half = _t_quantile(confidence, x.size - 1) * std(x) / math.sqrt(x.size)
    return (mean - half, mean + half)


def cohens_d(group_a: Values, group_b: Values) -> float:
    """(mean a - mean b) / pooled standard deviation; 0.0 with fewer than 2 values in a group or without any spread."""
    a, b = measured(group_a), measured(group_b)
    if min(a.size, b.size) < 2:
        return 0.0
    pooled = math.sqrt(((a.size - 1) * std(a) ** 2 + (b.size - 1) * std(b) ** 2) / (a.size + b.size - 2))
    return float(a.mean() - b.mean()) / pooled if pooled else 0.0


def hedges_correction(df: int) -> float:
    """J = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)): it makes a standardised difference unbiased (Hedges 1981).

    `df` are the degrees of freedom of the standard deviation; with fewer than 2 no correction exists: NaN.

    >>> round(hedges_correction(4), 4)
    0.7979
    """
    if df < 2:
        return math.nan
    return math.exp(math.lgamma(df / 2) - math.lgamma((df - 1) / 2)) / math.sqrt(df / 2)


def hedges_g(group_a: Values, group_b: Values) -> float:
    """Cohen's d times Hedges' correction: the difference of the means in units of the spread of one group.

    0.0 when the means are equal; NaN when a group has fewer than 2 values, or none has a spread to measure against.
    """
    a, b = measured(group_a), measured(group_b)
    if min(a.size, b.size) < 2:
        return math.nan
    d = cohens_d(group_a, group_b)
    return d * hedges_correction(a.size + b.size - 2) if d or a.mean() == b.mean() else math.nan


@dataclass(frozen=True)
class Comparison:
    """Two groups a and b, judged by a t-test.

    Attributes:
        difference: mean(a) - mean(b); NaN without values.
        standard_error: of the difference; 0 when there is no spread, NaN when there are too few values for one.
        df: degrees of freedom of the standard error.
        p: two-sided p-value of "no difference"; NaN when the values cannot tell.
        effect_size: `hedges_g`. Also for paired seeds it is the difference in units of the seed-to-seed standard
            deviation of one design (d_av of Lakens 2013, corrected): what a reader takes "effect size" for, whether
            seeds are shared or not. The d_z of power formulas is difference / (standard_error * sqrt(n)).
        n: number of pairs; of values in the smaller group where values are not paired.
    """

    difference: float
    standard_error: float
    df: float
    p: float
    effect_size: float
    n: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """Student-t interval of the difference; NaN where p is: no width of it would be honest."""
        if math.isnan(self.p):
            return Interval(math.nan, math.nan)
        half = _t_quantile(confidence, self.df) * self.standard_error if self.standard_error > 0 else 0.0
        return Interval(self.difference - half, self.difference + half)


def paired_comparison(a: Values, b: Values) -> Comparison:
    """Compares a[i] with b[i], which share a seed, by the paired t-test; a pair with a missing half is left out.

    One pair has no p. When all differences are equal, p is 1 if they are 0; else NaN: the seeds made no noise that the
    difference could be held against.

    >>> result = paired_comparison([1.0, 1.2, 1.1], [1.1, 1.4, 1.3])
    >>> round(result.difference, 4), round(result.p, 4), result.n
    (-0.1667, 0.0377, 3)

    Raises:
        UserError: the lists differ in length.
    """
    if len(a) != len(b):
        raise UserError(f"Paired values come in pairs, got {len(a)} and {len(b)}: give one value (or None) per seed")
    both = np.stack([_floats(a), _floats(b)], axis=-1)
    both = both[np.isfinite(both).all(axis=-1)]
    x, y = both.T
    if x.size < 2:
        return _t_test(x, y, math.nan, math.nan)
    return _t_test(x, y, std(x - y, scale=float(np.abs(both).max())) / math.sqrt(x.size), x.size - 1)


def welch_test(a: Values, b: Values) -> Comparison:
    """Compares two groups that share no seeds by Welch's t-test: their variances may differ.

    With fewer than two values in a group there is no p; without spread in both it is 1 for equal means, else NaN.
    """
    x, y = measured(a), measured(b)
    if min(x.size, y.size) < 2:
        return _t_test(x, y, math.nan, math.nan)
    share_x, share_y = std(x) ** 2 / x.size, std(y) ** 2 / y.size
    total = share_x + share_y
    df = total**2 / (share_x**2 / (x.size - 1) + share_y**2 / (y.size - 1)) if total else math.nan
    return _t_test(x, y, math.sqrt(total), df)


def _t_test(x: Array, y: Array, standard_error: float, df: float) -> Comparison:
    from scipy.special import stdtr

    n = min(x.size, y.size)
    difference = float(x.mean() - y.mean()) if n else math.nan
    p = math.nan
    if standard_error > 0:
        p = float(2 * stdtr(df, -abs(difference) / standard_error))
    elif standard_error == 0 and abs(difference) <= ROUNDING * abs(x).max():
        p = 1.0
    return Comparison(difference, standard_error, df, p, hedges_g(x, y), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: rejecting those <= alpha makes any false claim with probability <= alpha.

    adjusted(k-th smallest of m) = max over j <= k of (m - j + 1) p(j), at most 1. A test without a p (NaN) keeps its
    place among the m and stays NaN.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    m = len(p_values)
    adjusted = [math.nan] * m
    largest = 0.0
    known = (index for index in range(m) if not math.isnan(p_values[index]))
    for rank, index in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def std(x: Array, scale: float = 0.0) -> float:
    """Standard deviation (n - 1); exactly 0 when the values differ by rounding only (at their size or `scale`)."""
    if x.size < 2 or np.ptp(x) <= ROUNDING * max(scale, float(np.abs(x).max())):
        return 0.0
    return float(x.std(ddof=1))


def _t_quantile(confidence: float, df: float) -> float:
    if not 0 < confidence < 1:
        raise UserError(f"A confidence lies between 0 and 1, got {confidence}: give 0.95 for 95%")
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + confidence / 2))
