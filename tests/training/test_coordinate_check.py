"""Under muP wide models act as narrow ones do; in the standard parametrisation they do not."""

import dataclasses
import math

import numpy as np
import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.deepseek import deepseek_v3_tiny
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.llama import llama_tiny
from lmxlab.training.coordinate_check import CoordinateCheck, coordinate_check, widened


@pytest.mark.parametrize("config", [gpt_tiny(), llama_tiny()], ids=["gpt", "llama"])
def test_mup_keeps_activations_and_logits_within_a_fifth_from_64_to_512(config: ModelConfig) -> None:
    check = coordinate_check(config, (64, 512), seeds=1)
    print(dict(zip(check.places, check.changes[-1], strict=True)))
    assert check.passed and abs(check.worst[2]) < 0.2
    learnt = check.rms[:, -1] / check.rms[:, 0]
    assert (learnt > 1.3).all()  # else nothing was learnt that could have changed it


def test_the_standard_parametrisation_fails() -> None:
    check = coordinate_check(llama_tiny(), (64, 256), mup=False, seeds=1)
    assert not check.passed and (check.changes[-1] > 0.5).all()


def test_the_narrowest_model_is_the_same_in_both() -> None:
    """At the base width muP differs in the scale of attention alone, 1/d, and not even there in heads of size 1."""
    config = dataclasses.replace(llama_tiny(), block=BlockConfig(d_model=16, n_heads=16, d_ff=16, position="none"))
    ours, standard = (coordinate_check(config, (16, 32), mup=mup, seeds=1, steps=2).rms[0] for mup in (True, False))
    np.testing.assert_allclose(ours, standard, rtol=1e-5)


def test_the_worst_place_and_a_model_that_diverged() -> None:
    rms = np.ones((3, 2, 2))
    rms[2, 1, 0], rms[1, 1, 1] = 1.15, 0.7
    check = CoordinateCheck((8, 16, 32), ("layer_0/output", "logits"), rms)
    assert check.worst == ("logits", 16, pytest.approx(-0.3)) and not check.passed
    rms[1, 1, 1] = 0.9
    assert check.passed
    rms[2, 1, 1] = np.nan
    assert check.worst == ("logits", 32, math.inf) and not check.passed


def test_widening_keeps_numbers_of_heads_and_experts_and_widens_what_they_hold() -> None:
    config = deepseek_v3_tiny()
    wide = widened(config, 2 * config.block.d_model, config.block.d_model)
    assert wide.width_mult == 2 and wide.block.mup
    for before, after in zip(config.block_configs or (), wide.block_configs or (), strict=True):
        assert (after.n_heads, after.n_experts) == (before.n_heads, before.n_experts)
        for name in ("d_ff", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "rope_dim"):
            assert getattr(after, name) == (value and 2 * value if (value := getattr(before, name)) else value)
    gpt = widened(gpt_tiny(), 256, 64)
    assert (gpt.block.head_dim, gpt.block.n_heads, gpt.block.d_ff) == (128, 2, 512)
    assert gpt.embed_scale == 8 and widened(gpt_tiny(), 256).embed_scale == 16
    assert LanguageModel(gpt).embed.weight.shape == (256, 256)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 widths"):
        coordinate_check(gpt_tiny(), (64, 64))
    with pytest.raises(UserError, match=r"would make d_ff 50\.5"):
        widened(dataclasses.replace(gpt_tiny(), block=BlockConfig(d_model=64, n_heads=2, d_ff=101)), 32)
