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


def test_defaults_of_experts_are_written_out() -> None:
    plain = dataclasses.replace(llama_tiny().block, ffn="shared_moe", n_experts=4)

    def model(**own: object) -> dict[str, object]:
        return meaning(ModelConfig(dataclasses.replace(plain, **own), n_layers=1))  # type: ignore[arg-type]

    given = {"moe_d_ff": 128, "n_shared_experts": 1, "router_scores": "sigmoid", "router_normalized": True}
    assert model() == model(**given) == model(router_balance_step=0.5, moe_d_ff=128, d_ff=256)
    assert model() == model(shared_expert_d_ff=128) == model(moe_n_groups=2, moe_topk_groups=2)
    for changed in (
        {"n_shared_experts": 2},
        {"router_scores": "softmax"},
        {"moe_routed_scaling_factor": 2.0},
        {"top_k_experts": 1},
        {"moe_n_groups": 2},
        {"activation": "relu2"},
    ):
        assert model() != model(**changed), changed


def test_defaults_of_latent_attention_are_written_out() -> None:
    plain = dataclasses.replace(llama_tiny().block, attention="mla", position="none", kv_lora_rank=16, n_kv_heads=None)

    def model(**own: object) -> dict[str, object]:
        return meaning(ModelConfig(dataclasses.replace(plain, **own), n_layers=1))  # type: ignore[arg-type]

    assert model() == model(qk_nope_head_dim=16, v_head_dim=16, rope_dim=8, n_kv_heads=4, attention_scale=24**-0.5)
    yarn = RopeScaling("yarn", 4.0, 8)
    for changed in ({"rope_theta": 500.0}, {"rope_scaling": yarn}, {"rope_dim": 4}, {"mup": True}, {"head_dim": 8}):
        assert model() != model(**changed), changed
