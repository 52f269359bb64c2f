import mlx.core as mx
import pytest
from tiny_lm import tiny_config, tiny_model

from lmxlab.core.router import routers
from lmxlab.models.base import LanguageModel
from lmxlab.models.mixtral import mixtral_config
from lmxlab.training import Trainer
from lmxlab.training.expert_load import ExpertLoadMonitor

X, Y = mx.zeros((2, 8), dtype=mx.int32), mx.ones((2, 8), dtype=mx.int32)


def test_the_extremes_of_all_layers_are_shown_every_few_steps() -> None:
    model = LanguageModel(mixtral_config(31, 16, 2, 1, 2, 24, n_experts=4))
    trainer = Trainer(model, tiny_config(), callbacks=[ExpertLoadMonitor(model, log_interval=2)])
    history = trainer.train([(X, Y)] * 2)
    assert "expert_load_max" not in history[0]
    # One token alone, again and again: the same two of four experts get everything.
    assert (history[1]["expert_load_max"], history[1]["expert_load_min"]) == (2.0, 0.0)
    assert all(float(router.load.max()) == pytest.approx(0.5) for _, router in routers(model))


def test_a_model_without_experts_shows_nothing() -> None:
    model = tiny_model()
    trainer = Trainer(model, tiny_config(), callbacks=[ExpertLoadMonitor(model, log_interval=1)])
    assert "expert_load_max" not in trainer.train([(X % 17, Y % 17)])[0]
