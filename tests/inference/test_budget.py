"""Every method gets the same FLOPs, counted as the formulas say, and no answer from beyond them."""

import mlx.core as mx
import pytest
from tests.models.architectures import build, tokens

from lmxlab.inference import budget
from lmxlab.inference.budget import BudgetRow, Meter, budget_table, compare_at_budget
from lmxlab.inference.refine import Critique
from lmxlab.models.flops import forward_flops_per_token
from lmxlab.models.generate import generate
from lmxlab.models.sampling import Keys, Sampler

from .test_speculative import TARGETS


def test_the_meter_counts_what_the_formulas_say() -> None:
    model = build(TARGETS["llama"]())
    meter = Meter(model)
    text = generate(meter, tokens(1, 5), 4, temperature=0.0)
    projection = 2 * 32 * 61
    expected = 5 * (forward_flops_per_token(model.config, 5) - projection) + projection
    expected += sum(forward_flops_per_token(model.config, length) for length in (6, 7, 8))
    assert meter.flops == expected and meter.tokens == 4
    assert text.tolist() == generate(model, text[:, :5], 4, temperature=0.0).tolist()


def high(texts: mx.array) -> mx.array:
    return (texts[:, 4:] >= 30).astype(mx.float32).mean(axis=1)


METHODS = {
    "greedy": budget.greedy(8),
    "best of n": budget.best_of(8, high),
    "majority": budget.majority(8),
    "beams": budget.beams(8),
    "tree": budget.tree(8, high, block_tokens=2),
    "refine": budget.refinement(8, lambda prompt, answer: Critique(float(high(mx.array([prompt + answer])).item()))),
}


def test_no_method_spends_more_than_the_budget_and_those_that_can_use_it() -> None:
    model, prompts = build(TARGETS["llama"](), 0.05), [tokens(1, 4)[0]]
    one = Meter(model)
    next(METHODS["greedy"](one, tokens(1, 4), Keys(0)))
    rows = {}
    for factor in (8, 16):
        found = compare_at_budget(model, prompts, METHODS, lambda prompt, text: high(text).item(), factor * one.flops)
        assert [row.score for row in found] == sorted((row.score for row in found), reverse=True)
        rows[factor] = {row.method: row for row in found}
        assert set(rows[factor]) == set(METHODS)
        for name, row in rows[factor].items():
            assert 0 < row.flops <= factor * one.flops
            if name not in ("greedy", "beams"):
                assert row.flops > 0.5 * factor * one.flops, name
    for name in ("best of n", "tree", "refine"):
        assert rows[16][name].score >= rows[8][name].score
        assert rows[16][name].score > 0.6  # a text that is drawn has 0.5
    assert rows[16]["greedy"].flops == one.flops


def test_a_method_that_one_answer_takes_beyond_the_budget_has_no_score() -> None:
    model = build(TARGETS["llama"]())
    rows = compare_at_budget(model, [tokens(1, 4)], METHODS, lambda prompt, text: 1.0, 1000.0)
    assert {row.score for row in rows} == {None}
    with pytest.raises(ValueError, match="0 prompts"):
        compare_at_budget(model, [], METHODS, lambda prompt, text: 1.0, 1e9)


def test_equal_seeds_give_equal_tables() -> None:
    model, prompt = build(TARGETS["llama"](), 0.05), tokens(1, 4)
    methods = {"best": budget.best_of(6, high, Sampler(1.0)), "tree": budget.tree(6, high)}
    tables = [
        compare_at_budget(model, [prompt], methods, lambda prompt, text: high(text).item(), 1e7, seed=seed)
        for seed in (1, 1)
    ]
    assert tables[0] == tables[1]


def test_the_table_says_what_was_over_budget() -> None:
    rows = [BudgetRow("tree", 1234.0, 1.5e9, 0.51234), BudgetRow("beams", 0.0, 0.0, None)]
    assert budget_table(rows).splitlines()[2:] == [
        "| tree | 1,234 | 1.5e+09 | 0.512 |",
        "| beams | 0 | 0 | over budget |",
    ]
