"""Settings of methods: in files, by name, and what they cost."""

import pytest

from lmxlab.errors import UserError
from lmxlab.experiments.budget import flops_per_step, tokens_per_step
from lmxlab.experiments.methods import DPO, GRPO, METHODS, MTP, Method, find_method, method_to_dict
from lmxlab.experiments.spec import method_from_table

from .conftest import spec


@pytest.mark.parametrize("kind", METHODS.values())
def test_a_method_comes_back_from_its_table(kind: type[Method]) -> None:
    assert method_from_table(method_to_dict(kind())) == kind()


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(UserError, match="Unknown method 'ppo'"):
        find_method("ppo")
    with pytest.raises(UserError, match=r"Unknown config key 'method.bta'; did you mean 'method.beta'"):
        method_from_table({"name": "dpo", "bta": 1.0})
    with pytest.raises(UserError, match="must be a table of settings with a name"):
        method_from_table("dpo")
    with pytest.raises(UserError, match="mtp.n_predict is 0"):
        MTP(n_predict=0)


def test_a_pair_counts_twice_and_sampling_counts() -> None:
    plain, pairs = spec(), spec(method=DPO())
    assert flops_per_step(pairs) == 2 * flops_per_step(plain) and tokens_per_step(pairs) == 2 * tokens_per_step(plain)
    # One pass to sample and one of the reference beside the three of a step; half as much with two updates of each.
    assert flops_per_step(spec(method=GRPO(beta=0.1))) == pytest.approx(flops_per_step(plain) * 5 / 3, abs=1)
    assert flops_per_step(spec(method=GRPO(updates=2))) == pytest.approx(flops_per_step(plain) * 7 / 6, abs=1)
