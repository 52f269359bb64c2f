"""Training with prediction heads: the loss, in parts and resumed; and heads that draft what they have learned."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import build, gap
from tiny_lm import VOCAB, Cursor, batch, tiny_config

from lmxlab.core import kernels
from lmxlab.core.lora import apply_lora
from lmxlab.errors import UserError
from lmxlab.inference import MTPDrafter, speculative_decode
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate
from lmxlab.models.llama import llama_config
from lmxlab.models.mtp import head_states, mtp_logits
from lmxlab.training import Trainer
from lmxlab.training.mtp import MultiTokenPrediction, multi_token

CONFIG = llama_config(VOCAB, 32, 4, 2, 1, 48, 64, tie_embeddings=True)
WITH_HEADS = dataclasses.replace(CONFIG, mtp_n_predict=2, mtp_lambda=0.4)


def ramp(seed: int = 0, rows: int = 4, length: int = 12) -> tuple[mx.array, mx.array]:
    """Texts that follow the rule t -> 3 t + 1 throughout."""
    rng = np.random.default_rng(seed)
    text = [rng.integers(0, VOCAB, rows)]
    for _ in range(length):
        text.append((3 * text[-1] + 1) % VOCAB)
    array = mx.array(np.stack(text, axis=1).astype(np.int32))
    return array[:, :-1], array[:, 1:]


def test_the_loss_is_the_main_one_and_the_weighted_mean_over_heads() -> None:
    """Against log-softmax of all logits, position by position; the sums of all heads are divided by the same T."""
    model = build(WITH_HEADS)
    (x, _), y = batch(), mx.random.randint(0, VOCAB, (4, 12))
    y = mx.where(mx.arange(12) == 9, -100, y)

    def nats(logits: mx.array, targets: np.ndarray) -> float:
        logs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        return -sum(logs[b, i, t] for (b, i), t in np.ndenumerate(targets) if t >= 0)

    main = nats(model(x)[0], np.array(y)) / 44
    states = head_states(model, model.mtp_heads, model.hidden_states(x)[0], x)
    ahead = [nats(mtp_logits(model, s), np.array(y)[:, k:]) / 44 for k, s in enumerate(states, start=1)]
    total, counted, metrics = multi_token(model, x, y)
    assert float(counted) == 44
    assert float(metrics["main_loss"] / counted) == pytest.approx(main, rel=1e-5)
    assert float(metrics["mtp_loss"] / counted) == pytest.approx(np.mean(ahead), rel=1e-5)
    assert float(total / counted) == pytest.approx(main + 0.4 * np.mean(ahead), rel=1e-5)


def test_the_trainer_trains_the_heads_and_evaluates_the_main_loss() -> None:
    trainer = Trainer(build(WITH_HEADS), tiny_config(max_steps=30, compile_step=True))
    x, y = ramp()
    main = float(trainer.model.nats(x, y).mean())
    scores = trainer.evaluate([(x, y)])
    assert scores["eval_loss"] == scores["eval_main_loss"] == pytest.approx(main, rel=1e-5)
    first, *_, last = trainer.train([(x, y)] * 30)
    assert first["main_loss"] == pytest.approx(main, rel=1e-5)
    for metrics in (first, last):
        assert metrics["loss"] == pytest.approx(metrics["main_loss"] + 0.4 * metrics["mtp_loss"], rel=1e-5)
    assert last["mtp_loss"] < 0.7 * first["mtp_loss"] and last["main_loss"] < 0.7 * first["main_loss"]


def test_heads_teach_the_model_and_a_weight_of_zero_does_not() -> None:
    x, y = batch()
    gradients = {}
    for weight in (0.0, 0.4):
        mx.random.seed(0)
        model = LanguageModel(dataclasses.replace(WITH_HEADS, mtp_lambda=weight))
        trainer = Trainer(model, tiny_config())
        _, _, gradient = trainer._steps.gradients(x, y)
        gradients[weight] = dict(tree_flatten(gradient))
    mx.random.seed(0)
    _, _, plain = Trainer(LanguageModel(CONFIG), tiny_config())._steps.gradients(x, y)
    for name, value in tree_flatten(plain):
        assert gap(gradients[0.0][name], value) <= 1e-7
    assert gap(gradients[0.4]["embed.weight"], gradients[0.0]["embed.weight"]) > 1e-4
    assert gap(gradients[0.4]["mtp_heads.1.proj.weight"], gradients[0.0]["mtp_heads.1.proj.weight"]) > 1e-6


def test_micro_batches_make_the_step_of_the_whole_batch() -> None:
    x, y = batch()
    y = mx.where(mx.arange(12) < 5 * mx.arange(1, 5)[:, None], y, -100)  # rows count differently
    mx.random.seed(0)
    one = Trainer(LanguageModel(WITH_HEADS), tiny_config()).train_step((x, y))
    mx.random.seed(0)
    parts = [(x[:1], y[:1]), (x[1:], y[1:])]
    other = Trainer(LanguageModel(WITH_HEADS), tiny_config()).train_step_accumulated(parts)
    assert one == pytest.approx(other, rel=1e-5)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def trainer() -> Trainer:
        mx.random.seed(0)
        return Trainer(LanguageModel(WITH_HEADS), tiny_config(max_steps=6))

    whole = trainer()
    history = whole.train(Cursor())
    first = trainer()
    data = Cursor()
    for _ in range(3):
        first.train_step(next(data))
    first._data = data
    first.save(tmp_path / "saved")
    second = trainer()
    second.restore(tmp_path / "saved")
    assert second.train(Cursor()) == history[3:]


def test_adapters_train_with_heads() -> None:
    mx.random.seed(0)
    model = LanguageModel(WITH_HEADS)
    apply_lora(model, rank=2, targets=["attention"])
    history = Trainer(model, tiny_config(max_steps=12, learning_rate=3e-2)).train([ramp()] * 12)
    assert history[-1]["loss"] < history[0]["loss"]
    assert {name.rpartition(".")[2] for name, _ in tree_flatten(model.trainable_parameters())} == {"lora_A", "lora_B"}


def test_nothing_is_predicted_from_one_document_about_the_next() -> None:
    model = build(WITH_HEADS)
    x, y = batch(rows=1)
    segments = mx.array([[0] * 5 + [1] * 7])
    packed = multi_token(model, x, y, segments)
    alone = [multi_token(model, x[:, part], y[:, part]) for part in (slice(0, 5), slice(5, 12))]
    for name in ("main_loss", "mtp_loss"):
        assert float(packed.metrics[name]) == pytest.approx(sum(float(a.metrics[name]) for a in alone), rel=1e-5)


def test_a_wrapped_model_tells_logits_and_losses() -> None:
    model = build(CONFIG)
    wrapper = MultiTokenPrediction(model, n_predict=2, mtp_weight=0.3)
    x, y = batch()
    logits, losses = wrapper(x, y)
    assert gap(logits, model(x)[0]) == 0
    assert float(losses["main_loss"]) == pytest.approx(float(kernels.cross_entropy(logits, y).mean()), rel=1e-6)
    assert float(losses["total_loss"]) == pytest.approx(float(losses["main_loss"] + 0.3 * losses["mtp_loss"]))
    own = build(dataclasses.replace(WITH_HEADS, mtp_lambda=0.3))
    own.update({**model.parameters(), "mtp_heads": wrapper.parameters()["mtp_heads"]})
    loss = multi_token(own, x, y)
    assert float(loss.total / loss.counted) == pytest.approx(float(losses["total_loss"]), rel=1e-6)
    trained = Trainer(wrapper, tiny_config()).train([batch()] * 3)
    assert trained[0]["loss"] == pytest.approx(float(losses["total_loss"]), rel=1e-5)


def test_wrappers_that_cannot_work_are_refused() -> None:
    model = LanguageModel(CONFIG)
    with pytest.raises(UserError, match="at least 1 head"):
        MultiTokenPrediction(model, n_predict=0)
    with pytest.raises(UserError, match="d_model is 64, the model's 32"):
        MultiTokenPrediction(model, block_config=dataclasses.replace(CONFIG.block, d_model=64))


@pytest.mark.parametrize("wrapped", [False, True])
def test_trained_heads_draft_what_the_model_says(wrapped: bool) -> None:
    mx.random.seed(0)
    model = LanguageModel(CONFIG if wrapped else WITH_HEADS)
    trained = MultiTokenPrediction(model, 2) if wrapped else model
    untrained_rate = acceptance(model, trained.mtp_heads)
    Trainer(trained, tiny_config(max_steps=80, learning_rate=1e-2, compile_step=True)).train(
        [ramp(seed, rows=16) for seed in range(80)]
    )
    assert acceptance(model, trained.mtp_heads) > 0.9 > 0.5 > untrained_rate


def acceptance(model: LanguageModel, heads: list) -> float:
    prompt = mx.array([[2, 7, 5]])
    text, rates = speculative_decode(model, MTPDrafter(model, heads), prompt, 24, 2)
    assert text.tolist() == generate(model, prompt, 24, temperature=0.0).tolist()
    return float(rates["acceptance_rate"])
