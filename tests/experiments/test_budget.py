"""Sizes within 5%, steps within the budget."""

import pytest

from lmxlab.errors import UserError
from lmxlab.experiments.budget import count_parameters, flops_per_step, match_size, steps_within, tokens_per_step
from lmxlab.experiments.designs import adapt, find_design
from lmxlab.experiments.flops import estimate_flops_per_token
from lmxlab.experiments.loaded import base_config
from lmxlab.experiments.methods import MTP, Distill
from lmxlab.experiments.spec import Budget
from lmxlab.models.llama import llama_7b, llama_tiny
from lmxlab.training.config import TrainConfig

from .conftest import spec


def test_counting_holds_no_weights() -> None:
    import mlx.core as mx

    mx.reset_peak_memory()
    assert count_parameters(llama_7b()) > 5e9
    assert mx.get_peak_memory() < 100e6


@pytest.mark.parametrize("name", ["gpt", "llama"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.6])
def test_sizes_are_matched_within_5_percent(name: str, factor: float) -> None:
    model = find_design(name).model(96, 64)
    target = round(count_parameters(model) * factor)
    sized = match_size(model, target)
    assert sized.parameters == count_parameters(sized.model)
    assert abs(sized.parameters - target) / target <= 0.05
    assert (sized.change == "") == (factor == 1.0)
    assert (sized.model.n_layers, sized.model.block.n_heads) == (model.n_layers, model.block.n_heads)


def test_a_design_without_ffn_is_matched_by_its_width() -> None:
    model = adapt(find_design("gpt").model(96, 64), {"ffn": "none"})
    target = 2 * count_parameters(model)
    sized = match_size(model, target)
    assert abs(sized.parameters - target) / target <= 0.05
    assert sized.change.startswith("width 128 -> ")


def test_a_size_out_of_reach_says_so() -> None:
    with pytest.raises(UserError, match="within 5%"):
        match_size(llama_tiny(), 10)


def test_steps_fill_the_budget_and_never_pass_it() -> None:
    cost = flops_per_step(spec())
    assert steps_within(spec(budget=Budget(flops=10.5 * cost))) == 10
    assert steps_within(spec(budget=Budget(flops=1.0 * cost))) == 1
    assert steps_within(spec(budget=Budget(tokens=10 * tokens_per_step(spec())))) == 10
    assert steps_within(spec(budget=Budget(steps=7))) == 7
    assert steps_within(spec()) == TrainConfig().max_steps


def test_flops_count_the_context_that_is_trained_and_every_micro_batch() -> None:
    short, long = spec(), spec(seq_len=64)
    assert tokens_per_step(long) == 2 * tokens_per_step(short)
    assert flops_per_step(long) > 2 * flops_per_step(short)  # attention grows with the length
    accumulated = spec(optim=TrainConfig(batch_size=4, grad_accumulation_steps=3))
    assert flops_per_step(accumulated) == 3 * flops_per_step(short)


@pytest.mark.parametrize("budget", [Budget(flops=1e3), Budget(tokens=5)])
def test_a_budget_below_one_step_says_what_one_step_takes(budget: Budget) -> None:
    with pytest.raises(UserError, match="too small: one step of gpt takes"):
        steps_within(spec(budget=budget))


def test_the_forward_passes_of_a_teacher_are_charged() -> None:
    alone = flops_per_step(spec(method=MTP()))
    with_teacher = flops_per_step(spec(method=Distill("glassllm")))
    own, asked = (estimate_flops_per_token(config, 32) * 4 * 32 for config in (spec().model, base_config("glassllm")))
    assert with_teacher == 3 * own + asked
    assert flops_per_step(spec(method=Distill())) == flops_per_step(spec()) == 3 * own <= alone


def test_settings_of_a_teacher_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="Unknown divergence 'backward'"):
        Distill(kind="backward")
    with pytest.raises(UserError, match="distill.alpha is 2"):
        Distill(alpha=2.0)
