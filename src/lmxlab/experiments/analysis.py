"""What a set of runs says: rankings of the ledger, and the decision whether one design is better than another."""

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmxlab.errors import UserError
from lmxlab.experiments.statistics import (
    Comparison,
    Interval,
    Values,
    cohens_d,
    compute_statistics,
    confidence_interval,
    hedges_correction,
    holm,
    paired_comparison,
)
from lmxlab.experiments.tracking import ExperimentLog, LogEntry

__all__ = [
    "Verdict",
    "cohens_d",
    "compare_experiments",
    "compute_statistics",
    "confidence_interval",
    "decide",
    "power",
    "seeds_needed",
    "simplicity_score",
]

POWER_POINTS = 4096  # of the integral in `power`: four digits
MOST_SEEDS = 1000  # beyond this nobody would train: "more than 1000" says it


def compare_experiments(log: ExperimentLog, metric: str = "val_bpb") -> list[dict[str, Any]]:
    """The kept entries, lowest `metric` first; those that lack it come last with None.

    Returns:
        One dict per entry: `experiment`, the metric under its name, `param_count`, `wall_time_s`, `description`.
    """
    kept = [(entry.value(metric), entry) for entry in log.load() if entry.status == "keep"]
    kept.sort(key=lambda pair: math.inf if pair[0] is None else pair[0])
    return [
        {
            "experiment": entry.experiment,
            metric: value,
            "param_count": entry.param_count or None,
            "wall_time_s": entry.value("wall_time_s"),
            "description": entry.description,
        }
        for value, entry in kept
    ]


def simplicity_score(entry: LogEntry, baseline_params: int, baseline_metric: float, metric: str = "val_bpb") -> float:
    """Improvement per parameter against a baseline: (baseline_metric - metric) * baseline_params / param_count.

    Positive is better; NaN when the entry lacks the metric or its parameter count.
    """
    value = entry.value(metric)
    if value is None or not entry.param_count:
        return math.nan
    return (baseline_metric - value) * baseline_params / entry.param_count


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one pair of designs.

    Attributes:
        a, b: the designs; differences are mean(a) - mean(b).
        comparison: the paired t-test of the pair alone.
        p_adjusted: its p-value after Holm's correction for the number of pairs; NaN when the seeds cannot tell.
        interval: of the difference, at `confidence`, which is how strictly Holm's procedure judged this pair: it leaves
            out 0 exactly when p_adjusted <= alpha. With two designs the confidence is 1 - alpha. Each such interval
            holds for its pair alone; they are not simultaneous.
        better: the design shown to be better, or None: "no difference shown".
        alpha: the chance, over all pairs together, of showing a difference where there is none.
        n_seeds: seeds that were given; `comparison.n` of them measured both designs.
    """

    a: str
    b: str
    comparison: Comparison
    p_adjusted: float
    interval: Interval
    confidence: float
    better: str | None
    alpha: float
    n_seeds: int

    @property
    def difference(self) -> float:
        return self.comparison.difference

    @property
    def p(self) -> float:
        return self.comparison.p

    @property
    def effect_size(self) -> float:
        """Hedges' g: the difference in units of the seed-to-seed standard deviation of one design."""
        return self.comparison.effect_size

    @property
    def seeds_needed(self) -> int | None:
        """See `seeds_needed`, at the significance level that this pair was judged at."""
        return seeds_needed(self.comparison, alpha=1 - self.confidence)

    def sentence(self, metric: str = "val_bpb") -> str:
        """The verdict in plain words, for a person.

        >>> verdict, = decide({"gpt": [1.52, 1.55, 1.53], "llama": [1.41, 1.43, 1.44]})
        >>> verdict.sentence()
        'llama is better than gpt: val_bpb 0.107 lower (95% interval 0.0687 to 0.145, p = 0.00677, 3 paired seeds)'
        """
        c, percent = self.comparison, f"{100 * self.confidence:.4g}%"
        pairs = f"{c.n} paired seeds" if c.n == self.n_seeds else f"{c.n} of {self.n_seeds} seeds measured both"
        numbers = f"({percent} interval {{:.3g}} to {{:.3g}}, p = {self.p_adjusted:.3g}, {pairs})"
        if self.better:
            worse = self.b if self.better == self.a else self.a
            low, high = sorted(abs(end) for end in self.interval)
            direction = "lower" if (self.better == self.a) == (self.difference < 0) else "higher"
            size = f"{metric} {abs(self.difference):.3g} {direction}"
            return f"{self.better} is better than {worse}: {size} {numbers.format(low, high)}"
        opening = f"no difference shown between {self.a} and {self.b}: "
        if c.n < 2:
            return opening + f"a judgement takes at least 2 seeds that measured both, here {c.n} of {self.n_seeds} did"
        if math.isnan(self.p):
            return (
                opening
                + f"every seed gave the same {self.difference:.3g} {metric}, so there is no noise to judge it by"
            )
        if self.difference == 0:
            return opening + f"the mean {metric} is equal ({pairs})"
        size = f"{metric} differs by {self.difference:.3g} {numbers.format(*self.interval)}"
        needed = self.seeds_needed
        return opening + size + (f"; about {needed} seeds would show a difference of this size" if needed else "")


def decide(values: Mapping[str, Values], alpha: float = 0.05, lower_is_better: bool = True) -> list[Verdict]:
    """Judges every pair of designs by the paired t-test with Holm's correction over the pairs.

    However many designs, the chance that any difference is shown where none exists is at most `alpha`: by theory when
    the differences are normal, and less with heavier tails (`lmxlab.experiments.error_rate` measures both).

    Args:
        values: per design one value per seed, the same seeds in the same order; None or NaN where a run has no result.
        alpha: the chance of a false claim that is accepted.

    Returns:
        A verdict per pair, in the order of `values`.

    Raises:
        UserError: fewer than two designs, lists of different lengths, or an alpha outside (0, 1).
    """
    if len(values) < 2:
        raise UserError(f"A comparison takes at least 2 designs, got {list(values)}")
    if not 0 < alpha < 1:
        raise UserError(f"alpha lies between 0 and 1, got {alpha}: give 0.05 for one false claim in 20")
    pairs = list(itertools.combinations(values, 2))
    comparisons = [paired_comparison(values[a], values[b]) for a, b in pairs]
    p_values = [comparison.p for comparison in comparisons]
    verdicts = []
    for (a, b), comparison, p_adjusted, level in zip(
        pairs, comparisons, holm(p_values), _holm_levels(p_values, alpha), strict=True
    ):
        better = None
        if p_adjusted <= alpha:
            better = a if (comparison.difference < 0) == lower_is_better else b
        interval = comparison.interval(1 - level)
        verdicts.append(Verdict(a, b, comparison, p_adjusted, interval, 1 - level, better, alpha, len(values[a])))
    return verdicts


def _holm_levels(p_values: list[float], alpha: float) -> list[float]:
    """The level that Holm's step-down held each p to: alpha / (m - rank) up to the first failure, and on from there."""
    m = len(p_values)
    levels = [alpha / m] * m
    level, failed = alpha / m, False
    known = (index for index in range(m) if not math.isnan(p_values[index]))
    for rank, index in enumerate(sorted(known, key=lambda i: p_values[i])):
        if not failed:
            level = alpha / (m - rank)
            failed = p_values[index] > level
        levels[index] = level
    return levels


def power(d_z: float, n: int, alpha: float = 0.05) -> float:
    """Chance that the two-sided paired t-test on n pairs shows a true standardised difference d_z.

    That is E[Phi(shift - c s)] + E[Phi(-shift - c s)] over the distribution of the sample's standard deviation s, a
    chi divided by sqrt(n - 1): the noncentral t, of which scipy's own function is NaN far from the middle.

    >>> round(power(d_z=1.0, n=10), 3), power(d_z=2.0, n=100)
    (0.803, 1.0)
    """
    from scipy.special import chdtri, ndtr, stdtrit

    critical, shift = stdtrit(n - 1, 1 - alpha / 2), abs(d_z) * math.sqrt(n)
    shares = (np.arange(POWER_POINTS) + 0.5) / POWER_POINTS
    spread = critical * np.sqrt(chdtri(n - 1, shares) / (n - 1))
    return float(np.mean(ndtr(shift - spread) + ndtr(-shift - spread)))


def seeds_needed(comparison: Comparison, alpha: float = 0.05, target_power: float = 0.8) -> int | None:
    """Paired seeds that would show a difference of the size observed with a chance of 80%.

    The observed d_z is first shrunk by Hedges' correction: over few seeds it is too large on average. None when fewer
    than 3 pairs or no spread leave it unknown, or when more than MOST_SEEDS would be needed.
    """
    if comparison.n < 3 or not comparison.standard_error > 0:
        return None
    d_z = abs(comparison.difference) / (comparison.standard_error * math.sqrt(comparison.n))
    d_z *= hedges_correction(comparison.n - 1)
    n = bisect.bisect_left(range(MOST_SEEDS + 1), target_power, lo=2, key=lambda n: power(d_z, n, alpha))
    return n if n <= MOST_SEEDS else None
