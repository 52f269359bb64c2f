"""Patterns and published sizes; the computation is held to the reference by test_parity."""

import dataclasses

import mlx.core as mx
import pytest

from lmxlab.core.config import ModelConfig
from lmxlab.core.mamba_options import Multipliers
from lmxlab.errors import UserError
from lmxlab.models import falcon
from lmxlab.models.base import LanguageModel

from .architectures import build, gap, tokens
from .state_space import HYBRID


def test_the_standard_size_is_that_of_the_api() -> None:
    config = falcon.falcon_h1_config()
    kinds = [config.get_block_config(i).attention for i in range(config.n_layers)]
    assert kinds == (["mamba2"] * 4 + ["gqa"]) + (["mamba2"] * 3 + ["gqa"]) * 2 + ["mamba2"] * 3 + ["gqa"]
    assert {config.get_block_config(i).ffn for i in range(config.n_layers)} == {"gated"}
    assert config.block.d_model == 4096 and config.vocab_size == 65024 and not config.tie_embeddings


def test_sizes_are_those_that_were_published_or_promised() -> None:
    published = falcon.falcon_h1_0_5b()
    before = mx.get_active_memory()
    assert LanguageModel(published).count_parameters() == 521_411_104
    assert mx.get_active_memory() - before < 10e6
    assert published.block.attention == "gqa_mamba2" and published.block_configs is None
    assert 9e6 < LanguageModel(falcon.falcon_h1_10m()).count_parameters() < 11e6


@pytest.mark.parametrize("pattern", ["MX*", ""])
def test_an_unknown_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="Unknown pattern"):
        falcon.falcon_h1_config(pattern)


def test_every_multiplier_changes_the_model_and_needs_the_block_that_reads_it() -> None:
    model, x = build(falcon.falcon_h1_config("HH", **HYBRID, multipliers=Multipliers())), tokens(1, 12)
    plain, _ = model(x)
    assert gap(plain, build_like(model, falcon.falcon_h1_config("HH", **HYBRID))(x)[0]) < 1e-5
    for field in dataclasses.fields(Multipliers):
        factors = Multipliers(**{field.name: 1.5})
        other = build_like(model, falcon.falcon_h1_config("HH", **HYBRID, multipliers=factors))
        assert gap(plain, other(x)[0]) > 1e-3, field.name
    with pytest.raises(UserError, match="multipliers would be ignored in part: attention is 'mamba2'"):
        falcon.falcon_h1_config("MH", **HYBRID, multipliers=Multipliers())


def build_like(model: LanguageModel, config: ModelConfig) -> LanguageModel:
    """A model of another config with the same weights."""
    other = LanguageModel(config)
    other.update(model.parameters())
    return other
