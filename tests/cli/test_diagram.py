"""The block diagram of `info`: what is drawn is what is built, and cache sizes are those of real caches."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from lmxlab.cli.diagram import block_diagram, cache_bytes
from lmxlab.core.config import ModelConfig
from lmxlab.models.base import LanguageModel
from lmxlab.models.falcon import falcon_h1_config
from lmxlab.models.families import FAMILIES
from lmxlab.models.gemma3 import gemma3_1b
from lmxlab.models.gpt import gpt_tiny
from lmxlab.models.mamba import mamba_block
from lmxlab.models.olmo2 import olmo2_tiny


def test_layers_that_are_alike_share_a_letter() -> None:
    assert block_diagram(gemma3_1b()) == [
        "embedding 262,144 x 1,152, times 33.94",
        "layers AAAAABAAAAABAAAAABAAAAABAA",
        "  A (x22)",
        "    x + rms_norm(sliding_window_gqa(rms_norm(x)))   "
        "4 heads on 1 of 256, qk_norm, window_size 512, rope 10,000",
        "    x + rms_norm(gated(rms_norm(x)))                d_ff 6,912",
        "  B (x4)",
        "    x + rms_norm(gqa(rms_norm(x)))     4 heads on 1 of 256, qk_norm, rope 1,000,000",
        "    x + rms_norm(gated(rms_norm(x)))   d_ff 6,912",
        "rms_norm and the embedding, transposed",
    ]


def test_positions_and_norms_stand_where_they_act() -> None:
    assert "+ sinusoidal positions" in block_diagram(gpt_tiny())
    assert any("x + rms_norm(gqa(x))" in line for line in block_diagram(olmo2_tiny()))


def test_a_state_space_mixer_tells_its_states_and_only_what_is_its_own() -> None:
    assert (
        "    x + mamba2(rms_norm(x))   mamba_n_heads 64, mamba_head_dim 64, d_inner 4,096, 128 states"
        in block_diagram(falcon_h1_config())
    )


def bytes_kept(config: ModelConfig, n_tokens: int) -> int:
    model = LanguageModel(config)
    model.set_dtype(mx.bfloat16)
    _, caches = model(mx.zeros((1, n_tokens), mx.int32))
    leaves = [leaf for cache in caches if cache for _, leaf in tree_flatten(cache.snapshot())]
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, mx.array))


MAMBA3 = {"mamba_trapezoidal": True, "mamba_bc_norm": True, "mamba_complex_a": True}
CONFIGS = {name: family.tiny for name, family in FAMILIES.items()} | {
    "mamba3": lambda: ModelConfig(mamba_block(attention="mamba3", d_model=64, mamba_head_dim=32, **MAMBA3), 256, 2)
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_is_as_large_as_it_says(name: str) -> None:
    config = CONFIGS[name]()
    length = 128
    kept = [bytes_kept(config, n_tokens) for n_tokens in (length // 2, length)]
    per_token, fixed = cache_bytes(config)
    if {config.get_block_config(i).attention for i in range(config.n_layers)} & {"sliding_window_gqa", "chunked_gqa"}:
        assert fixed > 0 and per_token < kept[1] / length  # a single pass hands over all its keys: no window is cut yet
    else:
        assert kept == [per_token * length // 2 + fixed, per_token * length + fixed]
