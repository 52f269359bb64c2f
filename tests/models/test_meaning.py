"""Configs that are written differently and compute the same, and such as only look alike."""

import dataclasses

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.models.llama import llama_config, llama_tiny
from lmxlab.models.meaning import meaning

from .architectures import SIZE


def test_configs_that_compute_the_same_mean_the_same() -> None:
    plain = llama_tiny()
    block = dataclasses.replace(plain.block, n_kv_heads=4, dropout=0.1, attention_bias=False, norm_placement="pre")
    wide = dataclasses.replace(plain, block=block)
    assert meaning(wide) == meaning(dataclasses.replace(plain, block=dataclasses.replace(block, attention="mha")))
    assert meaning(wide) != meaning(plain)
    scaled = llama_config(**SIZE, n_kv_heads=2, rope_scaling=RopeScaling("linear", 4.0))
    assert meaning(scaled) != meaning(llama_config(**SIZE, n_kv_heads=2))


def test_defaults_of_recurrent_mixers_are_written_out() -> None:
    def model(**own: object) -> ModelConfig:
        return ModelConfig(BlockConfig(attention="mamba2", position="none", d_model=64, n_heads=4, **own), n_layers=1)  # type: ignore[arg-type]

    given = model(mamba_n_heads=4, mamba_head_dim=32, mamba_options=MambaOptions(d_inner=128, norm_groups=1, bias=True))
    assert meaning(model()) == meaning(given) == meaning(model(mamba_chunk_size=7))
    assert meaning(model()) != meaning(model(mamba_options=MambaOptions(norm="before_gate")))
    assert meaning(model()) != meaning(model(mamba_n_heads=8))
