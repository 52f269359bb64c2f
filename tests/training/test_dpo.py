"""DPO is TRL's DPO, scores completions alone, prefers what was chosen, and runs in the trainer as any objective."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import trl_reference
from mlx.utils import tree_flatten, tree_map
from tiny_lm import tiny_config

from lmxlab.core.lora import apply_lora
from lmxlab.data.preferences import Pair, PreferenceBatches, Preferences
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_config
from lmxlab.training import Trainer
from lmxlab.training.dpo import DPO, dpo_loss, with_reference


def tiny(seed: int = 0, **options: Any) -> LanguageModel:
    mx.random.seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "n_layers": 1, "d_ff": 24}
    model = LanguageModel(llama_config(**sizes, max_seq_len=64, **options))
    model.update(tree_map(lambda a: a * 3, model.parameters()))  # far enough from uniform to tell models apart
    mx.eval(model.parameters())
    return model


def preferences(n: int = 12) -> Preferences:
    """Of two completions of a prompt the one with even tokens is preferred."""
    draw = np.random.default_rng(0)
    pairs = []
    for _ in range(n):
        prompt = draw.integers(1, 32, draw.integers(2, 6)).tolist()
        even, odd = (2 * draw.integers(1, 15, draw.integers(2, 7)) + odd for odd in (0, 1))
        pairs.append(Pair(prompt, even.tolist(), odd.tolist()))
    return Preferences(pairs)


def trl_inputs(trl: Any) -> dict[str, mx.array]:
    return {name: trl.batches[name] for name in ("chosen", "rejected", "chosen_mask", "rejected_mask")}


@pytest.mark.oracle
@pytest.mark.parametrize("case", trl_reference.DPO_CASES)
def test_loss_gradients_and_metrics_are_those_of_trl(case: str, trl: Any) -> None:
    beta, options = trl_reference.DPO_CASES[case]
    model, ref_model, inputs = trl.model("policy"), trl.model("reference"), trl_inputs(trl)
    options = {"loss_type": case.split()[0], **options}
    expected = trl.check(f"dpo {case}", model, lambda: dpo_loss(model, ref_model, beta=beta, **inputs, **options))
    objective = DPO(beta, ref_model=ref_model, **options)
    _, counted, metrics = objective(model, *inputs.values())
    for name in ("chosen_reward", "rejected_reward", "accuracy"):
        assert float(metrics[name] / counted) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-5)


@pytest.mark.oracle
def test_a_smoothed_loss_is_the_mixture_of_both_orders(trl: Any) -> None:
    """Conservative DPO; TRL has it no more, but the loss of the pairs the wrong way round is a loss, too."""
    model, ref_model = trl.model("policy"), trl.model("reference")
    chosen, rejected, chosen_mask, rejected_mask = trl_inputs(trl).values()
    right = dpo_loss(model, ref_model, chosen, rejected, chosen_mask=chosen_mask, rejected_mask=rejected_mask)
    wrong = dpo_loss(model, ref_model, rejected, chosen, chosen_mask=rejected_mask, rejected_mask=chosen_mask)
    masks = {"chosen_mask": chosen_mask, "rejected_mask": rejected_mask}
    smoothed = dpo_loss(model, ref_model, chosen, rejected, label_smoothing=0.3, **masks)
    assert abs(float(right - wrong)) > 0.01
    assert float(smoothed) == pytest.approx(float(0.7 * right + 0.3 * wrong), rel=1e-5)


def test_a_policy_that_is_its_reference_knows_no_preference() -> None:
    model = tiny()
    chosen, rejected = (mx.random.randint(1, 32, (3, 9)) for _ in range(2))
    assert float(dpo_loss(model, model, chosen, rejected)) == pytest.approx(np.log(2), rel=1e-6)


def test_without_masks_every_token_but_the_first_is_scored() -> None:
    model, ref_model = tiny(), tiny(1)
    chosen, rejected = (mx.random.randint(1, 32, (3, 9)) for _ in range(2))

    def sums(of: LanguageModel, tokens: mx.array) -> mx.array:
        logits = of(tokens)[0][:, :-1]
        return mx.take_along_axis(nn.log_softmax(logits), tokens[:, 1:, None], axis=-1).sum(axis=(1, 2))

    delta = sums(model, chosen) - sums(ref_model, chosen) - sums(model, rejected) + sums(ref_model, rejected)
    expected = -nn.log_sigmoid(0.1 * delta).mean()
    assert float(dpo_loss(model, ref_model, chosen, rejected)) == pytest.approx(float(expected), rel=1e-4)


def test_prompt_lengths_and_the_pad_id_say_what_masks_say() -> None:
    """Seen by a loss per token; in the others what a common prompt adds cancels."""
    model, ref_model = tiny(), tiny(1)
    chosen, rejected, chosen_mask, rejected_mask = next(PreferenceBatches(preferences(), 4))
    lengths = mx.argmax(chosen_mask, axis=1)

    def loss(**options: Any) -> float:
        return float(dpo_loss(model, ref_model, chosen, rejected, loss_type="ipo", **options))

    expected = loss(chosen_mask=chosen_mask, rejected_mask=rejected_mask)
    assert loss(prompt_lengths=lengths, pad_id=0) == pytest.approx(expected, rel=1e-6)
    for fewer in ({"prompt_lengths": lengths}, {"pad_id": 0}, {}):
        assert loss(**fewer) != pytest.approx(expected, rel=1e-4)


def test_what_padding_holds_does_not_matter() -> None:
    model, ref_model = tiny(), tiny(1)
    chosen, rejected, chosen_mask, rejected_mask = next(PreferenceBatches(preferences(), 4))
    masks = {"chosen_mask": chosen_mask, "rejected_mask": rejected_mask}
    expected = dpo_loss(model, ref_model, chosen, rejected, **masks)
    refilled = mx.where(chosen == 0, 7, chosen)
    assert mx.array_equal(dpo_loss(model, ref_model, refilled, rejected, **masks), expected)


def test_a_pad_id_inside_the_text_is_text() -> None:
    model, ref_model = tiny(), tiny(1)
    chosen, rejected = mx.array([[5, 0, 6, 0, 0]]), mx.array([[5, 9, 0, 0, 0]])
    masks = {"chosen_mask": mx.array([[1, 1, 1, 0, 0]]), "rejected_mask": mx.array([[1, 1, 0, 0, 0]])}
    expected = dpo_loss(model, ref_model, chosen, rejected, **masks)
    assert mx.array_equal(dpo_loss(model, ref_model, chosen, rejected, pad_id=0), expected)


def test_a_precomputed_reference_is_the_online_one() -> None:
    model, ref_model = tiny(), tiny(1)
    scored = with_reference(preferences(), ref_model, batch_size=5)
    assert scored.reference is not None and scored.reference.shape == (2, 12)
    batch = next(PreferenceBatches(scored, 4))
    offline, online = DPO()(model, *batch), DPO(ref_model=ref_model)(model, *batch[:4])
    assert float(offline.total) == pytest.approx(float(online.total), rel=1e-5)
    reference = (batch[4], batch[5])
    masks = {"chosen_mask": batch[2], "rejected_mask": batch[3]}
    loss = dpo_loss(model, None, batch[0], batch[1], reference=reference, **masks)
    assert float(loss) == pytest.approx(float(offline.total / offline.counted), rel=1e-6)


def test_the_reference_of_a_model_with_adapters_is_the_model_without_them() -> None:
    model, base = tiny(), tiny()
    apply_lora(model, 4, 8.0, ["attention", "ffn"], dora=True)
    model.update(tree_map(lambda a: a + 0.3, model.trainable_parameters()))
    batch = next(PreferenceBatches(preferences(), 4))
    for ref_model in (None, model):
        loss = DPO(ref_model=ref_model)(model, *batch).total
        assert float(loss) == pytest.approx(float(DPO(ref_model=base)(model, *batch).total), rel=1e-5)
    assert float(loss) != pytest.approx(4 * np.log(2), rel=1e-3)
    np.testing.assert_allclose(
        with_reference(preferences(), model).reference, with_reference(preferences(), base).reference, rtol=1e-5
    )


@pytest.mark.parametrize(("adapters", "compiled"), [(False, False), (True, True)])
def test_training_learns_the_preference(adapters: bool, compiled: bool) -> None:
    model = tiny()
    scored = with_reference(preferences(), model)
    if adapters:
        apply_lora(model, 4, 8.0, ["attention", "ffn"])
    config = tiny_config(max_steps=20, learning_rate=1e-2, compile_step=compiled, weight_decay=0.0)
    trainer = Trainer(model, config, objective=DPO())
    batches = PreferenceBatches(scored, 6)
    before = trainer.evaluate(batches.in_order)
    assert before["eval_loss"] == pytest.approx(np.log(2), rel=1e-5) and before["eval_margin"] == pytest.approx(
        0, abs=1e-4
    )
    trainer.train(batches)
    after = trainer.evaluate(batches.in_order)
    assert after["eval_accuracy"] == 1 and after["eval_margin"] > 0.3
    assert after["eval_margin"] == pytest.approx(after["eval_chosen_reward"] - after["eval_rejected_reward"], rel=1e-4)


def test_in_half_precision_a_reference_of_the_same_arithmetic_starts_without_a_margin() -> None:
    model = tiny()
    config = tiny_config(dtype="bfloat16")
    margins = []
    for dtype in ("bfloat16", "float32"):
        scored = with_reference(preferences(), model, dtype=dtype)
        trainer = Trainer(model, config, objective=DPO(beta=1.0))
        margins.append(abs(trainer.evaluate(lambda: scored.in_order(4))["eval_margin"]))  # noqa: B023 (used at once)
    assert margins[0] < 1e-5 < 1e-3 < margins[1]
    assert all(leaf.dtype == mx.float32 for _, leaf in tree_flatten(model.parameters()))


def test_a_resumed_run_is_the_one_that_never_stopped(tmp_path: Path) -> None:
    def trainer(steps: int) -> Trainer:
        config = tiny_config(max_steps=6, grad_accumulation_steps=2, lr_schedule="constant")
        made = Trainer(tiny(), config, objective=DPO())
        made.callbacks = [Until(steps)]
        return made

    batches = lambda: PreferenceBatches(with_reference(preferences(), tiny()), 5, seed=3)  # noqa: E731
    whole, first, second = trainer(6), trainer(3), trainer(6)
    expected = whole.train(batches())
    history = first.train(batches())
    first.save(tmp_path / "c")
    second.restore(tmp_path / "c")
    assert history + second.train(batches()) == expected
    for ours, theirs in zip(*(tree_flatten(t.model.parameters()) for t in (second, whole)), strict=True):
        assert mx.array_equal(ours[1], theirs[1]), ours[0]


class Until:
    def __init__(self, step: int):
        self.step, self.should_stop = step, False

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        self.should_stop = step >= self.step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "sigmoidal"}, "Unknown DPO loss 'sigmoidal'; did you mean 'sigmoid'"),
        ({"divergence": "backward"}, "Unknown divergence"),
        ({"beta": 0.0}, "beta is 0.0"),
        ({"nll_weight": -1.0}, "nll_weight is -1.0"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"label_smoothing": 0.1, "loss_type": "hinge"}, "ignored by hinge"),
        ({"loss_type": "exo_pair"}, "exo_pair needs"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DPO(**options)


def test_inputs_that_do_not_pair_up_are_refused() -> None:
    model = tiny()
    tokens = mx.ones((2, 5), mx.int32)
    with pytest.raises(UserError, match=r"chosen is \(2, 5\) and rejected \(1, 5\)"):
        dpo_loss(model, model, tokens, tokens[:1])
    with pytest.raises(UserError, match=r"A mask is \(2, 4\), its tokens \(2, 5\)"):
        dpo_loss(model, model, tokens, tokens, chosen_mask=mx.ones((2, 4)))
    with pytest.raises(UserError, match="no reference model"):
        dpo_loss(model, None, tokens, tokens)
    mx.random.seed(0)
    other = LanguageModel(llama_config(vocab_size=33, d_model=16, n_heads=2, n_kv_heads=1, n_layers=1, d_ff=24))
    with pytest.raises(UserError, match="vocabulary of 33 tokens, the model one of 32"):
        dpo_loss(model, other, tokens, tokens)
