"""How often a rule that compares designs is wrong, and how often it finds a difference: measured on simulated runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmxlab.experiments.analysis import Verdict, decide
from lmxlab.experiments.statistics import Array

Rule = Callable[[Mapping[str, Array]], Sequence[Verdict]]

# Noise of one run, in units of sigma. Student's t with 3 degrees of freedom is scaled to the variance 1: now and then a
# run lies many sigma off. "skewed" is a log-normal of that variance: most runs good, a few much worse.
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Array]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student_t3": lambda rng, shape: rng.standard_t(3, shape) / np.sqrt(3),
    "skewed": lambda rng, shape: (rng.lognormal(0, 1, shape) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1)),
}


@dataclass(frozen=True)
class Rates:
    """Shares of the simulated comparisons.

    Attributes:
        false_claims: comparisons with at least one untrue claim: about two equal designs, or the wrong way round.
        found: true differences that were claimed, of all there were; 0 when there were none.
    """

    noise: str
    n_seeds: int
    n_designs: int
    effect_sigma: float
    false_claims: float
    found: float


def simulate(
    effect_sigma: float = 0.0,
    n_seeds: int = 3,
    n_designs: int = 2,
    noise: str = "normal",
    n_trials: int = 2000,
    seed: int = 0,
    rule: Rule = decide,
) -> Rates:
    """Plays `rule` on comparisons whose truth is known: the first design is `effect_sigma` better, the rest are equal.

    The value of a run is an effect of its seed, shared by all designs (2 sigma wide), plus noise of its own (1 sigma);
    lower is better.

    >>> simulate(effect_sigma=3.0, n_seeds=5, n_trials=200).found > 0.7
    True
    """
    rng = np.random.default_rng(seed)
    runs = NOISES[noise](rng, (n_trials, n_designs, n_seeds)) + 2 * rng.standard_normal((n_trials, 1, n_seeds))
    runs[:, 0] -= effect_sigma
    names = [f"design {index}" for index in range(n_designs)]
    better = names[0] if effect_sigma else None
    wrong = found = 0
    for trial in runs:
        verdicts = rule(dict(zip(names, trial, strict=True)))
        claims = [(verdict.better, names[0] in (verdict.a, verdict.b)) for verdict in verdicts if verdict.better]
        true = sum(claimed == better and among for claimed, among in claims)
        found += true
        wrong += true < len(claims)
    pairs_that_differ = n_designs - 1 if effect_sigma else 0
    share = found / (n_trials * pairs_that_differ) if pairs_that_differ else 0.0
    return Rates(noise, n_seeds, n_designs, effect_sigma, wrong / n_trials, share)


def error_table(
    effects: Sequence[float] = (0.0, 1.0, 2.0, 3.0),
    seeds: Sequence[int] = (3, 5),
    designs: Sequence[int] = (2, 4),
    noises: Sequence[str] = ("normal", "student_t3"),
    n_trials: int = 2000,
    rule: Rule = decide,
) -> list[Rates]:
    """`simulate` over all combinations: effect 0 gives the rates of false claims, the others the power."""
    return [
        simulate(effect, n_seeds, n_designs, noise, n_trials, rule=rule)
        for noise in noises
        for n_designs in designs
        for n_seeds in seeds
        for effect in effects
    ]
