"""TrainConfig says what is wrong with it."""

import json

import pytest

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.training import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_steps", 0),
        ("batch_size", 0),
        ("grad_accumulation_steps", 0),
        ("eval_interval", 0),
        ("checkpoint_interval", 0),
        ("warmup_steps", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("weight_decay", -0.1),
        ("max_grad_norm", float("nan")),
        ("min_lr_ratio", 1.5),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("momentum", 1.0),
        ("eps", 0.0),
    ],
)
def test_a_value_that_cannot_work_is_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"TrainConfig.{field} must be .*, got"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "adamww", "Unknown optimizer 'adamww'; did you mean 'adamw'"),
        ("lr_schedule", "cosin", "Unknown schedule 'cosin'; did you mean 'cosine'"),
        ("dtype", "bf16", "Unknown dtype 'bf16'"),
        ("muon_lr_adjust", "moonshot", "Unknown muon_lr_adjust"),
    ],
)
def test_an_unknown_name_offers_the_nearest(field: str, value: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        TrainConfig(**{field: value})


def test_config_survives_json() -> None:
    config = TrainConfig(betas=(0.8, 0.9), momentum=0.5, dtype="bfloat16")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_refuses_a_key_that_is_no_field() -> None:
    with pytest.raises(UnknownNameError, match="Unknown config key 'learn_rate'; did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learn_rate": 1e-3})
