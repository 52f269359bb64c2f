"""Patterns and published sizes; the computation is held to the reference by test_parity."""

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models import nemotron
from lmxlab.models.base import LanguageModel

SIZES = {
    nemotron.nemotron3_8b: (52, {"M": 24, "-": 24, "*": 4}, 8_100_852_736),
    nemotron.nemotron3_nano: (52, {"M": 23, "E": 23, "*": 6}, 31_577_940_288),
    nemotron.nemotron3_super: (88, {"M": 40, "E": 40, "*": 8}, 120_668_707_840),
}
PARTS = {"M": ("mamba2", "none"), "E": ("none", "latent_moe"), "*": ("gqa", "none"), "-": ("none", "relu2")}


def test_every_letter_is_one_kind_of_layer_without_positions() -> None:
    config = nemotron.nemotron3_config("ME*-M")
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    assert [(layer.attention, layer.ffn) for layer in layers] == [PARTS[kind] for kind in "ME*-M"]
    assert {layer.position for layer in layers} == {"none"}
    assert nemotron.nemotron3_config().n_layers == 8 and nemotron.nemotron3_config().vocab_size == 256000


@pytest.mark.parametrize("pattern", ["MEX", ""])
def test_an_unknown_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="Unknown pattern"):
        nemotron.nemotron3_config(pattern)


@pytest.mark.parametrize("preset", SIZES, ids=lambda preset: preset.__name__)
def test_presets_are_as_published(preset) -> None:
    n_layers, counts, n_parameters = SIZES[preset]
    config = preset()
    layers = [config.get_block_config(i) for i in range(config.n_layers)]
    kinds = {"mamba2": "M", "gqa": "*"}
    found = [kinds.get(layer.attention, "-" if layer.ffn == "relu2" else "E") for layer in layers]
    assert len(found) == n_layers and {kind: found.count(kind) for kind in set(found)} == counts
    before = mx.get_active_memory()
    assert LanguageModel(config).count_parameters() == n_parameters
    assert mx.get_active_memory() - before < 10e6
    wide = next((layer.ffn for layer in layers if layer.n_experts), None)
    assert wide == {"nemotron3_nano": "shared_moe", "nemotron3_super": "latent_moe"}.get(preset.__name__)
