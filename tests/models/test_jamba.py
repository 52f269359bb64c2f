"""Which layers are of which kind, and published sizes; the computation is held to the reference by test_parity."""

import mlx.core as mx
import pytest

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError
from lmxlab.models import jamba
from lmxlab.models.base import LanguageModel


def kinds(config: ModelConfig, field: str) -> list[str]:
    return [getattr(config.get_block_config(i), field) for i in range(config.n_layers)]


def test_the_standard_size_is_that_of_the_api() -> None:
    config = jamba.jamba_config()
    assert kinds(config, "attention") == (["mamba2"] * 3 + ["gqa"]) * 8
    assert kinds(config, "ffn") == (["gated"] * 7 + ["moe"]) * 4
    assert set(kinds(config, "position")) == {"none"}
    assert config.get_block_config(7).n_experts == 16 and not config.tie_embeddings


def test_the_published_model_has_attention_at_4_of_8_and_experts_in_every_second_layer() -> None:
    config = jamba.jamba_v0_1()
    before = mx.get_active_memory()
    assert LanguageModel(config).count_parameters() == 51_570_323_328
    assert mx.get_active_memory() - before < 10e6
    assert kinds(config, "attention") == (["mamba1"] * 4 + ["gqa"] + ["mamba1"] * 3) * 4
    assert kinds(config, "ffn") == ["gated", "moe"] * 16
    assert config.get_block_config(1).router_normalized is False


def test_the_small_preset_has_10_million_parameters() -> None:
    assert 9e6 < LanguageModel(jamba.jamba_10m()).count_parameters() < 11e6
    assert jamba.jamba_10m().n_layers == 12


def test_an_unknown_mixer_is_refused() -> None:
    with pytest.raises(UserError, match="mixer is 'mamba3'; it must be 'mamba1' or 'mamba2'"):
        jamba.jamba_config(mixer="mamba3")
