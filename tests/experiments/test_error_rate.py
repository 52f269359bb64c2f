"""The rule that `compare` speaks by keeps its promise: at most 5% false claims when designs do not differ."""

import math

import numpy as np
import pytest

from lmxlab.experiments.analysis import decide, power
from lmxlab.experiments.error_rate import NOISES, Rates, error_table, simulate

TRIALS = 1500
MONTE_CARLO = 3 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("noise", ["normal", "student_t3", "skewed"])
@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("n_designs", [2, 4])
def test_no_effect_is_claimed_to_be_one_in_at_most_5_percent(noise, n_seeds, n_designs):
    rates = simulate(0.0, n_seeds, n_designs, noise, TRIALS, seed=1)
    assert rates.false_claims <= 0.05 + MONTE_CARLO
    assert rates.false_claims > 0.005, "the simulation does reach the decision"
    assert rates.found == 0.0


@pytest.mark.parametrize("n_designs", [2, 4])
def test_the_simulation_catches_a_rule_that_claims_too_much(n_designs):
    def greedy(values):
        return decide(values, alpha=0.15)

    assert simulate(n_designs=n_designs, n_trials=TRIALS, rule=greedy).false_claims > 0.05 + MONTE_CARLO


def test_wrong_directions_are_false_claims():
    def upside_down(values):
        return decide(values, lower_is_better=False)

    rates = simulate(3.0, n_seeds=5, n_trials=200, rule=upside_down)
    assert rates.found == 0.0 and rates.false_claims > 0.8


def test_a_huge_effect_is_found_in_every_pair_that_differs_and_is_no_false_claim():
    rates = simulate(100.0, n_seeds=5, n_designs=4, n_trials=200)
    assert rates.found == 1.0
    assert rates.false_claims < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)  # among the three that are equal


@pytest.mark.parametrize(("effect", "n_seeds"), [(1.0, 3), (2.0, 3), (3.0, 3), (2.0, 5)])
def test_the_power_under_normal_noise_is_the_one_of_theory(effect, n_seeds):
    found = simulate(effect, n_seeds, n_trials=TRIALS).found
    # The noise of a difference of two runs is sqrt(2) sigma.
    assert found == pytest.approx(power(effect / math.sqrt(2), n_seeds), abs=0.04)


def test_power_grows_with_the_effect_and_the_seeds():
    table = error_table(designs=(2,), n_trials=300)
    found = {(r.noise, r.n_seeds, r.effect_sigma): r.found for r in table}
    assert len(found) == len(table) == 2 * 2 * 4
    for noise in ("normal", "student_t3"):
        for n_seeds in (3, 5):
            rising = [found[noise, n_seeds, effect] for effect in (0.0, 1.0, 2.0, 3.0)]
            assert rising == sorted(rising) and rising[0] == 0.0 and rising[3] > 0.4
        assert found[noise, 5, 3.0] > found[noise, 3, 3.0] + 0.1


@pytest.mark.parametrize("name", NOISES)
def test_noises_have_mean_0_and_one_sigma(name):
    sample = NOISES[name](np.random.default_rng(0), (400_000,))
    assert sample.mean() == pytest.approx(0, abs=0.01)
    assert sample.std() == pytest.approx(1, abs=0.1)  # heavy tails: the estimate itself is noisy


def test_the_rates_repeat_and_say_what_they_are_of():
    assert simulate(1.0, n_trials=50) == simulate(1.0, n_trials=50) != simulate(1.0, n_trials=50, seed=5)
    assert simulate(1.0, 4, 3, "skewed", 10) == Rates("skewed", 4, 3, 1.0, *(pytest.approx(x, abs=1) for x in (0, 0)))
