"""GRPO is TRL's GRPO; the laws that a wrong sign, mask, ratio or normaliser would break."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import trl_reference
from mlx.utils import tree_flatten, tree_map
from test_dpo import tiny

from lmxlab.core.lora import apply_lora
from lmxlab.errors import UserError
from lmxlab.training.grpo import GRPO, group_advantages, grpo_loss
from lmxlab.training.logprobs import reference_logprobs, token_logprobs, until_stop

PROMPTS = mx.array([[3, 4, 5]] * 4)
COMPLETIONS = mx.concatenate([PROMPTS, mx.array([[6, 7, 8, 9], [1, 2, 3, 4], [9, 9, 9, 2], [4, 2, 0, 0]])], axis=1)
REWARDS = mx.array([1.0, 0.0, 0.0, 0.5])


def gradient_of(model: Any, loss: Any) -> mx.array:
    _, tree = nn.value_and_grad(model, loss)()
    return mx.concatenate([leaf.flatten() for _, leaf in tree_flatten(tree)])


def trl_arguments(trl: Any, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `grpo_loss` takes in that case, and the options of the objective."""
    expected, options = trl.arrays(f"grpo {case}"), dict(trl_reference.GRPO_CASES[case])
    sampled = None if options.pop("on_policy", False) else expected["sampled"]
    arguments = {"completion_mask": trl.batches["completion_mask"], "sampled": sampled}
    groups = mx.array(np.repeat(np.arange(trl_reference.GROUPS), 3))
    return {**arguments, "groups": groups, "reference": expected["reference"]}, options


@pytest.mark.oracle
@pytest.mark.parametrize("case", trl_reference.GRPO_CASES)
def test_loss_gradients_and_metrics_are_those_of_trl(case: str, trl: Any) -> None:
    model, completions, rewards = trl.model("policy"), trl.batches["completions"], trl.batches["rewards"]
    arguments, options = trl_arguments(trl, case)
    prompts = completions[:, : trl_reference.PROMPT]
    expected = trl.check(
        f"grpo {case}", model, lambda: grpo_loss(model, None, prompts, completions, rewards, **arguments, **options)
    )
    start = trl_reference.PROMPT - 1
    names = ("completion_mask", "sampled", "reference")
    mask, sampled, reference = (
        None if arguments[name] is None else mx.pad(arguments[name], [(0, 0), (start, 0)]) for name in names
    )
    batch = (completions, mask, group_advantages(rewards, arguments["groups"]), rewards, sampled, reference)
    total, counted, metrics = GRPO(**options)(model, *batch)
    assert float(total / counted) == pytest.approx(float(expected["loss"]), rel=1e-4, abs=1e-5)
    for name in {"kl", "clipped"} & expected.keys():
        if options.get("ratio") != "sequence" or name == "kl":  # TRL tells the share of sequences there
            assert float(metrics[name] / counted) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6)
    if case == "grpo":
        assert 0.1 < float(expected["clipped"]) < 0.9  # both sides of the clip were compared


@pytest.mark.oracle
def test_advantages_are_those_of_trl(trl: Any) -> None:
    groups = mx.array(np.repeat(np.arange(trl_reference.GROUPS), 3))
    expected = trl.arrays("advantages")["advantages"]
    np.testing.assert_allclose(group_advantages(trl.batches["rewards"], groups), expected, atol=1e-6)
    shuffled = mx.array([3, 0, 5, 1, 4, 2])
    ours = group_advantages(trl.batches["rewards"][shuffled], groups[shuffled])
    np.testing.assert_allclose(ours, expected[shuffled], atol=1e-6)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_a_policy_that_is_its_reference_with_equal_rewards_has_no_loss_and_no_gradient(loss_type: str) -> None:
    model, twin = tiny(), tiny()
    rewards = mx.full((4,), 0.1)
    for ref_model in (twin, model):
        options = {"loss_type": loss_type, "max_tokens": 4}
        arguments = (model, ref_model, PROMPTS, COMPLETIONS, rewards)
        assert float(grpo_loss(*arguments, **options)) == 0
        assert not gradient_of(model, lambda: grpo_loss(*arguments, **options)).any()  # noqa: B023 (used at once)


def test_the_gradient_raises_what_was_rewarded() -> None:
    """On policy it is the policy gradient: -mean over completions of A times the mean of their log-probabilities."""
    model = tiny()
    advantages = group_advantages(REWARDS)

    def reinforce() -> mx.array:
        logprobs = token_logprobs(model, COMPLETIONS)[:, 2:]
        return -(advantages * logprobs.mean(axis=1)).mean()

    ours = gradient_of(model, lambda: grpo_loss(model, None, PROMPTS, COMPLETIONS, REWARDS, beta=0.0))
    np.testing.assert_allclose(ours, gradient_of(model, reinforce), atol=1e-6)
    assert advantages[0] > 0 > advantages[1] and mx.abs(ours).max() > 1e-3


def test_the_ratio_is_to_the_sampling_policy_and_clipped_where_that_bounds_the_gain() -> None:
    model = tiny()
    now = mx.stop_gradient(token_logprobs(model, COMPLETIONS)[:, 2:])
    for shift, reward, frozen in ((0.5, 1, True), (0.5, -1, False), (-0.5, 1, False), (-0.5, -1, True)):
        advantages = mx.full((4,), float(reward))
        arguments = (model, None, PROMPTS, COMPLETIONS, REWARDS, 0.0)
        options = {"sampled": now - shift, "advantages": advantages}
        gradient = gradient_of(model, lambda: grpo_loss(*arguments, **options))  # noqa: B023 (used at once)
        assert bool(mx.abs(gradient).max() == 0) is frozen
        bound = {0.5: 1.2, -0.5: 0.8}[shift] if frozen else float(mx.exp(mx.array(shift)))
        assert float(grpo_loss(*arguments, **options)) == pytest.approx(-reward * bound, rel=1e-5)
    higher = {"sampled": now - 0.5, "advantages": mx.ones((4,)), "epsilon_high": 0.7}
    assert mx.abs(gradient_of(model, lambda: grpo_loss(*arguments, **higher))).max() > 0  # DAPO clips higher


def test_what_is_clipped_is_what_the_bounds_of_the_loss_touch() -> None:
    weights, found = mx.array([[0.5, 1.1, 1.5, 4.0, 7.0]]), []
    for options in ({}, {"loss_type": "cispo", "epsilon_high": 3.0}):
        objective = GRPO(beta=0.0, **options)
        for sign in (1.0, -1.0):
            rest = mx.ones((1, 5)), mx.array([sign]), mx.zeros(1), mx.zeros((1, 5))
            gradient = mx.grad(lambda x, o=objective, rest=rest: o.score(x, *rest).total)(mx.log(weights))
            loss = objective.score(mx.log(weights), *rest)
            found.append(round(5 * float(loss.metrics["clipped"] / loss.counted)))
            if options:
                assert mx.allclose(gradient, -sign * mx.minimum(weights, 3.0))
            else:
                assert found[-1] == int((gradient == 0).sum())
    assert found == [3, 1, 2, 0]


def test_the_reference_is_without_dropout_and_the_policy_keeps_its_own() -> None:
    model = tiny()
    apply_lora(model, 4, 8.0, ["attention", "ffn"], dropout=0.5)
    model.update(tree_map(lambda a: a + 0.2, model.trainable_parameters()))
    model.blocks[0].resid_dropout = nn.Dropout(0.5)
    model.train()
    found = [reference_logprobs(model, ref_model, COMPLETIONS) for ref_model in (None, model, None)]
    assert all(mx.array_equal(found[0], other) for other in found[1:])
    assert model.training and not mx.array_equal(*(token_logprobs(model, COMPLETIONS) for _ in range(2)))


def test_the_penalty_pulls_towards_the_reference() -> None:
    model, ref_model = tiny(), tiny(1)

    def distance() -> float:
        q = token_logprobs(ref_model, COMPLETIONS)[:, 2:] - token_logprobs(model, COMPLETIONS)[:, 2:]
        return float((mx.exp(q) - q - 1).mean())

    equal = mx.ones((4,))
    loss = grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, equal, beta=0.5)
    assert float(loss) == pytest.approx(0.5 * distance(), rel=1e-4) and distance() > 0
    before = distance()
    for _ in range(20):
        _, tree = nn.value_and_grad(model, lambda: grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, equal))()
        model.update(tree_map(lambda p, g: p - 0.3 * g, model.trainable_parameters(), tree))
    assert distance() < 0.8 * before


def test_tokens_after_the_stop_count_neither_in_the_loss_nor_in_a_length() -> None:
    model, ref_model = tiny(), tiny(1)
    mask = mx.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])  # the stop itself is scored
    assert mx.array_equal(until_stop(COMPLETIONS[:, 3:], 2), mask)
    for loss_type in ("grpo", "dapo"):
        options = {"loss_type": loss_type}
        expected = grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, REWARDS, completion_mask=mask, **options)
        by_stop = grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, REWARDS, stop_id=2, **options)
        everything = grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, REWARDS, **options)
        assert mx.array_equal(by_stop, expected)
        assert float(everything) != pytest.approx(float(expected), rel=1e-4)
    refilled = mx.concatenate([COMPLETIONS[:3], mx.array([[3, 4, 5, 4, 2, 17, 30]])])
    changed = grpo_loss(model, ref_model, PROMPTS, refilled, REWARDS, completion_mask=mask, **options)
    assert mx.array_equal(changed, expected)


def test_normalisers_weigh_completions_of_different_lengths_as_their_papers_say() -> None:
    """With ratio 1 a token's loss is minus its advantage."""
    advantages, lengths = np.array([1.0, -2.0, 0.5, 3.0]), np.array([4, 2, 4, 1])
    mask = mx.array((np.arange(4) < lengths[:, None]).astype(np.float32))
    sums = (advantages * lengths).sum()
    expected = {"grpo": advantages.mean(), "dapo": sums / lengths.sum(), "dr_grpo": sums / (4 * 10)}
    for loss_type, value in expected.items():
        options = {"loss_type": loss_type, "completion_mask": mask, "advantages": mx.array(advantages, mx.float32)}
        loss = grpo_loss(tiny(), None, PROMPTS, COMPLETIONS, REWARDS, 0.0, max_tokens=10, **options)
        assert float(loss) == pytest.approx(-value, rel=1e-5)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_exactly_no_signal(scale: str) -> None:
    """The float32 mean of equal numbers is not always that number: in some of these sizes it is not."""
    for size in range(2, 40):
        assert not group_advantages(mx.full((size,), 0.7), scale=scale).any(), size


def test_advantages_stay_within_their_group() -> None:
    rewards, groups = mx.array([1.0, 3.0, 10.0, 30.0, 7.0, 7.0]), mx.array([0, 0, 5, 5, 2, 2])
    std = np.array([2, 20]) / np.sqrt(2)  # of a sample of two
    a, b = np.array([1, 10]) / (std + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards, groups), [-a, a, -b, b, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(group_advantages(rewards, groups, "none"), [-1, 1, -10, 10, 0, 0], rtol=1e-6)
    spread = np.std(np.array(rewards), ddof=1) + 1e-4
    batch = np.array([-1, 1, -10, 10, 0, 0]) / spread
    np.testing.assert_allclose(group_advantages(rewards, groups, "batch"), batch, rtol=1e-5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_reward_that_is_no_number_shows_in_its_own_group_alone(scale: str) -> None:
    rewards, groups = mx.array([1.0, np.nan, 0.0, 2.0, 3.0, 4.0]), mx.array([0, 0, 0, 1, 1, 1])
    advantages = np.array(group_advantages(rewards, groups, scale))
    assert np.isnan(advantages[:3]).all()
    np.testing.assert_allclose(advantages[3:], group_advantages(rewards[3:], None, scale))
    assert np.isnan(float(grpo_loss(tiny(), None, PROMPTS, COMPLETIONS, mx.array([1.0, np.nan, 0.0, 0.5]), 0.0)))


def test_the_reference_of_a_model_with_adapters_is_the_model_without_them() -> None:
    model, base = tiny(), tiny()
    apply_lora(model, 4, 8.0, ["attention", "ffn"])
    model.update(tree_map(lambda a: a + 0.2, model.trainable_parameters()))
    expected = grpo_loss(model, base, PROMPTS, COMPLETIONS, REWARDS)
    without = grpo_loss(model, None, PROMPTS, COMPLETIONS, REWARDS, beta=0.0)
    assert float(expected) != pytest.approx(float(without), rel=1e-3)
    for ref_model in (None, model):
        loss = grpo_loss(model, ref_model, PROMPTS, COMPLETIONS, REWARDS)
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_micro_batches_of_tokens_make_the_loss_of_the_whole_batch() -> None:
    """The sums of DAPO weigh tokens, whichever micro-batch they are in."""
    model, lengths = tiny(), np.array([4, 2, 3, 1])
    mask = mx.pad(mx.array((np.arange(4) < lengths[:, None]).astype(np.float32)), [(0, 0), (2, 0)])
    objective = GRPO(beta=0.0, loss_type="dapo")
    batch = (COMPLETIONS, mask, group_advantages(REWARDS), REWARDS)
    whole = objective(model, *batch)
    parts = [objective(model, *(array[rows] for array in batch)) for rows in (slice(1), slice(1, 4))]
    total, counted = (sum(float(getattr(part, name)) for part in parts) for name in ("total", "counted"))
    assert total / counted == pytest.approx(float(whole.total / whole.counted), rel=1e-5) and counted == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "ppo"}, "Unknown GRPO loss"),
        ({"ratio": "tokens"}, "Unknown ratio 'tokens'; did you mean 'token'"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
        ({"epsilon_high": 0.0}, "epsilon_high is 0.0"),
        ({"delta": 1.1}, "above 1 \\+ epsilon_high"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"loss_type": "dr_grpo"}, "give the most tokens"),
        ({"loss_type": "cispo"}, "give epsilon_high"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPO(**options)


def test_batches_that_cannot_be_scored_are_refused() -> None:
    model = tiny()
    with pytest.raises(UserError, match="at least 2 completions"):
        grpo_loss(model, model, PROMPTS[:1], COMPLETIONS[:1], REWARDS[:1])
    with pytest.raises(UserError, match=r"completions are the whole sequences"):
        grpo_loss(model, model, PROMPTS, PROMPTS, REWARDS)
    with pytest.raises(UserError, match=r"sampled is \(4, 7\); it must be \(B, T - L\), here \(4, 4\)"):
        grpo_loss(model, model, PROMPTS, COMPLETIONS, REWARDS, sampled=mx.zeros((4, 7)))
    with pytest.raises(UserError, match="no reference model"):
        grpo_loss(model, None, PROMPTS, COMPLETIONS, REWARDS)
    with pytest.raises(UserError, match="penalty needs"):
        GRPO()(model, COMPLETIONS, mx.ones((4, 6)), REWARDS, REWARDS)
    with pytest.raises(UserError, match="Unknown scale of rewards"):
        group_advantages(REWARDS, scale="groups")
