"""Sizes within 5%, steps within the budget, designs by name and by file, run specs through files."""

import dataclasses
import json
from pathlib import Path

import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.experiments.budget import count_parameters, flops_per_step, match_size, steps_within, tokens_per_step
from lmxlab.experiments.designs import adapt, design_names, find_design
from lmxlab.experiments.spec import Budget, RunSpec, read_config
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_7b, llama_tiny
from lmxlab.training.config import TrainConfig


def spec(**changes: object) -> RunSpec:
    values = {"optim": TrainConfig(batch_size=4), "seq_len": 32, **changes}
    return RunSpec(name="gpt", model=gpt_tiny(), **values)  # type: ignore[arg-type]


def test_a_spec_survives_json() -> None:
    original = spec(budget=Budget(flops=1e9), seed=3, optim=TrainConfig(betas=(0.8, 0.95)))
    assert RunSpec.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_a_per_layer_model_survives_json() -> None:
    block = BlockConfig(d_model=32, n_heads=2, d_ff=64)
    blocks = (block, dataclasses.replace(block, d_ff=96))
    original = dataclasses.replace(spec(), model=ModelConfig(block, 64, 2, block_configs=blocks))
    assert RunSpec.from_dict(json.loads(json.dumps(original.to_dict()))) == original


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 3", "did you mean 'seed'"),
        ("[optim]\nlearning_rat = 1.0", "did you mean 'optim.learning_rate'"),
        ('[optim]\nlearning_rate = "high"', "optim.learning_rate must be float, got 'high'"),
        ("[optim]\nbatch_size = true", "optim.batch_size must be int, got True"),
        ("[budget]\nsteps = 3\nflops = 1e9", "one unit"),
        ("[budget]\nsteps = 0", "above 0, got steps = 0"),
        ("optim = 3", r"\[optim\] must be a table"),
        ('seed = "high"', "seed must be int, got 'high'"),
    ],
)
def test_a_wrong_config_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        RunSpec.from_dict({"name": "x", "model": gpt_tiny().to_dict(), **read_config(path)})


@pytest.mark.parametrize(("name", "content"), [("a.toml", "seed = "), ("a.json", "{"), ("b.toml", "\x00\xff")])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=name):
        read_config(tmp_path / name)


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(UserError, match=r"no config file 'nowhere\.toml'"):
        find_design("nowhere.toml")


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


def test_named_designs_take_the_vocabulary_and_context_of_the_run() -> None:
    for name in design_names():
        model = find_design(name).model(77, 48)
        assert (model.vocab_size, model.block.max_seq_len) == (77, 48), name


def test_an_unknown_design_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'llama'"):
        find_design("lama")


def test_a_file_starts_from_a_design_and_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "wide.toml"
    path.write_text('[model]\ndesign = "gpt"\nd_model = 192\nn_layers = 2\nqk_norm = true\n')
    design = find_design(str(path))
    model = design.model(77, 48)
    assert design.name == "wide" and not design.resizable
    assert (model.block.d_model, model.n_layers, model.block.qk_norm, model.vocab_size) == (192, 2, True, 77)


def test_a_file_may_hold_a_whole_model(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": "mine", "model": llama_tiny().to_dict()}))
    design = find_design(str(path))
    assert design.name == "mine" and design.model(77, 48) == llama_tiny()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", r"\[model\] needs design = NAME"),
        ('[model]\ndesign = "gtp"', "did you mean 'gpt'"),
        ('[model]\ndesign = "gpt"\nd_modle = 3', "did you mean 'model.d_model'"),
        ('[model]\ndesign = "gpt"\nd_model = 130', "divisible"),
    ],
)
def test_a_wrong_model_table_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        find_design(str(path)).model(77, 48)
