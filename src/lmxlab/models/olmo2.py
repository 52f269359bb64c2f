"""OLMo 2: norms on the output of each branch, and on q and k of all heads together (2501.00656, section 2.1)."""

from typing import Any

from lmxlab.core.config import ModelConfig
from lmxlab.models.decoder import decoder_block
from lmxlab.models.hf_config import Converter, HFConfig, block_from_hf, decoder, decoder_to_hf
from lmxlab.models.llama import LLAMA_LAYER, QK_NORM, llama_rules


def olmo2_config(
    vocab_size: int = 100352,
    d_model: int = 4096,
    n_heads: int = 32,
    n_kv_heads: int = 32,
    n_layers: int = 32,
    d_ff: int = 11008,
    max_seq_len: int = 4096,
    rope_theta: float = 500000.0,
    tie_embeddings: bool = False,
) -> ModelConfig:
    """x + norm(f(x)) with RMSNorm, attention with joint QK-norm, SwiGLU, RoPE; no biases."""
    block = decoder_block(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_ff=d_ff,
        norm_eps=1e-6,
        norm_placement="branch",
        max_seq_len=max_seq_len,
        rope_theta=rope_theta,
        qk_norm=True,
        qk_norm_joint=True,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def olmo2_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide."""
    return olmo2_config(256, 64, 4, 4, 2, 128, max_seq_len=128)


def olmo2_7b() -> ModelConfig:
    """OLMo 2 7B, 7.3 B parameters (2501.00656, table 3; its released config.json)."""
    return olmo2_config()


def config_from_olmo2(hf: HFConfig) -> ModelConfig:
    """The config of an Olmo2ForCausalLM."""
    hf.refuse_unless(hidden_act="silu")
    own = {"attention_bias": hf.get("attention_bias", False), "norm_eps": hf.get("rms_norm_eps", 1e-5)}
    block = block_from_hf(hf, **own, qk_norm=True, qk_norm_joint=True, norm_placement="branch")
    return decoder(hf, [block] * hf["num_hidden_layers"])


def olmo2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of an Olmo2ForCausalLM."""
    return decoder_to_hf(config, attention_bias=config.block.effective_attention_bias)


OLMO2_LAYER = {
    **LLAMA_LAYER,
    **QK_NORM,
    "post_attention_layernorm": "attn_norm",
    "post_feedforward_layernorm": "ffn_norm",
}
del OLMO2_LAYER["input_layernorm"]
OLMO2 = Converter("olmo2", "Olmo2ForCausalLM", config_from_olmo2, olmo2_to_hf, llama_rules(OLMO2_LAYER))
