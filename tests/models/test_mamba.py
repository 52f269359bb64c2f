"""Published sizes; the computation is held to the reference by test_parity."""

from collections.abc import Callable

import mlx.core as mx
import pytest

from lmxlab.core.config import ModelConfig
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.errors import UserError
from lmxlab.models import mamba
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import config_from_hf

PUBLISHED = {
    mamba.mamba_130m: 129_135_360,
    mamba.mamba_370m: 371_516_416,
    mamba.mamba_1_4b: 1_372_178_432,
    mamba.mamba_2_8b: 2_768_345_600,
    mamba.mamba2_130m: 128_989_632,
}


@pytest.mark.parametrize("preset", PUBLISHED, ids=lambda preset: preset.__name__)
def test_presets_have_the_published_number_of_parameters_and_none_is_drawn(preset: Callable[[], ModelConfig]) -> None:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert LanguageModel(preset()).count_parameters() == PUBLISHED[preset]
    assert mx.get_peak_memory() - before < 10e6


@pytest.mark.parametrize("limit", [(0.0, float("inf")), [0.0, {"__float__": "Infinity"}], None], ids=str)
def test_no_limit_of_step_sizes_in_any_spelling(limit: object) -> None:
    fields = {"model_type": "mamba2", "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}
    config = config_from_hf(fields | {"head_dim": 16, "n_groups": 1, "time_step_limit": limit})
    assert config.block.mamba_options is None
    limited = config_from_hf(fields | {"head_dim": 16, "n_groups": 1, "time_step_limit": [0.1, 0.5]})
    assert limited.block.mamba_options == MambaOptions(dt_min=0.1, dt_max=0.5)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="dt_max is 0.1; it must be above dt_min 0.2"):
        MambaOptions(dt_min=0.2, dt_max=0.1)
    with pytest.raises(UserError, match=r"Unknown mamba_options.norm 'before'"):
        MambaOptions(norm="before")
    with pytest.raises(UserError, match="mamba_options .* would be ignored: attention 'gqa' does not read it"):
        mamba.mamba_block(attention="gqa", d_model=32, mamba_options=MambaOptions(d_inner=64))
