"""Mamba and Mamba-2: nothing but state-space mixers, one norm and one mixer per layer, no positions, no FFN."""

import math
from typing import Any

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.core.mamba2 import heads_of
from lmxlab.core.mamba_options import MambaOptions
from lmxlab.models.hf_config import Converter, HFConfig, decoder
from lmxlab.models.weight_map import per_layer, rename

# Fields that only say how weights were drawn or which kernel runs.
OF_OTHERS = (
    *("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", "time_step_scale"),
    *("time_step_init_scheme", "rescale_prenorm_residual", "use_mambapy", "use_associative_scan", "residual_in_fp32"),
)


# At laboratory size: two layers for each block of attention and FFN (2312.00752, section 3.4).
LAB = {"n_layers": 8}
LAB2 = LAB | {"mamba_head_dim": 32, "ssm_state_size": 32, "mamba_chunk_size": 32}


def mamba_block(**fields: Any) -> BlockConfig:
    """A norm and a mixer; `fields` of BlockConfig add to that or replace it."""
    common = {"ffn": "none", "norm": "rms_norm", "position": "none", "bias": False, "n_heads": 1}
    return BlockConfig(**{**common, **fields})


def mamba_config(
    vocab_size: int = 50280,
    d_model: int = 768,
    n_layers: int = 24,
    ssm_state_size: int = 16,
    mamba_expand: int = 2,
    conv_kernel_size: int = 4,
    max_seq_len: int = 2048,
    tie_embeddings: bool = True,
    norm_eps: float = 1e-5,
    mamba_options: MambaOptions | None = None,
) -> ModelConfig:
    """Mamba (2312.00752)."""
    block = mamba_block(
        attention="mamba1",
        d_model=d_model,
        ssm_state_size=ssm_state_size,
        mamba_expand=mamba_expand,
        conv_kernel_size=conv_kernel_size,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        mamba_options=mamba_options,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def mamba2_config(
    vocab_size: int = 50288,
    d_model: int = 768,
    n_layers: int = 24,
    mamba_head_dim: int = 64,
    ssm_state_size: int = 128,
    mamba_expand: int = 2,
    mamba_n_groups: int = 1,
    mamba_chunk_size: int = 256,
    conv_kernel_size: int = 4,
    max_seq_len: int = 2048,
    tie_embeddings: bool = True,
    norm_eps: float = 1e-5,
    mamba_options: MambaOptions | None = None,
) -> ModelConfig:
    """Mamba-2 (2405.21060)."""
    block = mamba_block(
        attention="mamba2",
        d_model=d_model,
        mamba_head_dim=mamba_head_dim,
        ssm_state_size=ssm_state_size,
        mamba_expand=mamba_expand,
        mamba_n_groups=mamba_n_groups,
        mamba_chunk_size=mamba_chunk_size,
        conv_kernel_size=conv_kernel_size,
        max_seq_len=max_seq_len,
        norm_eps=norm_eps,
        mamba_options=mamba_options,
    )
    return ModelConfig(block, vocab_size, n_layers, tie_embeddings)


def mamba_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, 8 states per channel."""
    return mamba_config(vocab_size=256, d_model=64, n_layers=2, ssm_state_size=8, max_seq_len=128)


def mamba2_tiny() -> ModelConfig:
    """For tests: 2 layers, 64 wide, 4 heads of 32 channels and 16 states, chunks of 32."""
    return mamba2_config(
        vocab_size=256,
        d_model=64,
        n_layers=2,
        mamba_head_dim=32,
        ssm_state_size=16,
        mamba_chunk_size=32,
        max_seq_len=128,
    )


def mamba_130m() -> ModelConfig:
    """Mamba 130M, 129,135,360 parameters (2312.00752, table 12, and state-spaces/mamba-130m-hf)."""
    return mamba_config()


def mamba_370m() -> ModelConfig:
    """Mamba 370M, 371,516,416 parameters (state-spaces/mamba-370m-hf)."""
    return mamba_config(d_model=1024, n_layers=48)


def mamba_790m() -> ModelConfig:
    """Mamba 790M, 793,204,224 parameters (state-spaces/mamba-790m-hf)."""
    return mamba_config(d_model=1536, n_layers=48)


def mamba_1_4b() -> ModelConfig:
    """Mamba 1.4B, 1,372,178,432 parameters (state-spaces/mamba-1.4b-hf)."""
    return mamba_config(d_model=2048, n_layers=48)


def mamba_2_8b() -> ModelConfig:
    """Mamba 2.8B, 2,768,345,600 parameters (state-spaces/mamba-2.8b-hf)."""
    return mamba_config(d_model=2560, n_layers=64)


def mamba2_130m() -> ModelConfig:
    """Mamba-2 130M, 128,989,632 parameters (state-spaces/mamba2-130m)."""
    return mamba2_config()


def mamba2_780m() -> ModelConfig:
    """Mamba-2 780M (state-spaces/mamba2-780m)."""
    return mamba2_config(d_model=1536, n_layers=48)


def mamba2_2_7b() -> ModelConfig:
    """Mamba-2 2.7B (state-spaces/mamba2-2.7b)."""
    return mamba2_config(d_model=2560, n_layers=64)


def _block_from_hf(hf: HFConfig, attention: str, **own: Any) -> BlockConfig:
    hf.require("vocab_size", "hidden_size", "num_hidden_layers")
    hf.refuse_unless(hidden_act="silu")
    for name in OF_OTHERS:
        hf.get(name, None)
    return mamba_block(
        attention=attention,
        d_model=hf["hidden_size"],
        mamba_expand=hf.get("expand", 2),
        conv_kernel_size=hf.get("conv_kernel", 4),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        bias=hf.get("use_bias", False),
        max_seq_len=hf.get("max_position_embeddings", 2048),
        **own,
    )


def config_from_mamba(hf: HFConfig) -> ModelConfig:
    """The config of a MambaForCausalLM."""
    derived = math.ceil(hf["hidden_size"] / 16) if "hidden_size" in hf.fields else None
    rank = hf.get("time_step_rank", "auto")
    width = hf.get("intermediate_size", None)
    options = {
        "conv_bias": hf.get("use_conv_bias", True),
        "dt_rank": None if rank in ("auto", derived) else rank,
        "d_inner": None if width in (None, hf.get("expand", 2) * hf.get("hidden_size", 0)) else width,
    }
    block = _block_from_hf(hf, "mamba1", ssm_state_size=hf.get("state_size", 16), mamba_options=_given(**options))
    return decoder(hf, [block] * hf["num_hidden_layers"], tied=True)


def config_from_mamba2(hf: HFConfig) -> ModelConfig:
    """The config of a Mamba2ForCausalLM."""
    options = _given(conv_bias=hf.get("use_conv_bias", True), **dt_limits(hf))
    inner = hf.get("num_heads", 128) * hf.get("head_dim", 64)
    hf.refuse_unless(intermediate_size=inner)  # follows from the heads
    block = _block_from_hf(
        hf,
        "mamba2",
        mamba_n_heads=hf.get("num_heads", 128),
        mamba_head_dim=hf.get("head_dim", 64),
        ssm_state_size=hf.get("state_size", 128),
        mamba_n_groups=hf.get("n_groups", 8),
        mamba_chunk_size=hf.get("chunk_size", 256),
        mamba_options=options,
    )
    return decoder(hf, [block] * hf["num_hidden_layers"])


def dt_limits(hf: HFConfig) -> dict[str, Any]:
    """MambaOptions' dt_min and dt_max from `time_step_limit`, which may hold infinity in more than one spelling."""
    low, high = hf.get("time_step_limit", None) or (0.0, math.inf)
    high = float(high["__float__"] if isinstance(high, dict) else high)
    return {"dt_min": float(low)} | ({"dt_max": high} if math.isfinite(high) else {})


def dt_limits_to_hf(options: MambaOptions) -> list[float]:
    """What `dt_limits` reads."""
    return [options.dt_min, math.inf if options.dt_max is None else options.dt_max]


def inner_width(d_model: int, expand: int, heads: int, head_dim: int) -> int | None:
    """MambaOptions.d_inner of a mixer with these heads, None where it is d_model * expand."""
    return None if heads * head_dim == d_model * expand else heads * head_dim


def _given(**options: Any) -> MambaOptions | None:
    """Options, or None where they say nothing."""
    made = MambaOptions(**options)
    return None if made == MambaOptions() else made


def _to_hf(config: ModelConfig, **own: Any) -> dict[str, Any]:
    block = config.block
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": block.d_model,
        "num_hidden_layers": config.n_layers,
        "state_size": block.ssm_state_size,
        "expand": block.mamba_expand,
        "conv_kernel": block.conv_kernel_size,
        "layer_norm_epsilon": block.norm_eps,
        "use_bias": block.bias,
        "use_conv_bias": (block.mamba_options or MambaOptions()).conv_bias,
        "hidden_act": "silu",
        "residual_in_fp32": False,
        "max_position_embeddings": block.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        **own,
    }


def mamba_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a MambaForCausalLM."""
    block, options = config.block, config.block.mamba_options or MambaOptions()
    return _to_hf(
        config,
        intermediate_size=options.d_inner or block.mamba_expand * block.d_model,
        time_step_rank=options.dt_rank or math.ceil(block.d_model / 16),
    )


def mamba2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a Mamba2ForCausalLM."""
    block = config.block
    heads, width = heads_of(block)
    return _to_hf(
        config,
        num_heads=heads,
        head_dim=width,
        n_groups=block.mamba_n_groups,
        chunk_size=block.mamba_chunk_size,
        intermediate_size=heads * width,  # this one and the rank are for mlx-lm
        time_step_rank=math.ceil(block.d_model / 16),
        time_step_limit=dt_limits_to_hf(block.mamba_options or MambaOptions()),
    )


OUTER = {"backbone.embeddings": "embed", "backbone.norm_f": "final_norm", "lm_head": "head"}
# Of every Mamba mixer that has the names of the first one.
MIXER = {"A_log": "A_log", "D": "D", "conv1d": "conv", "in_proj": "in_proj", "out_proj": "o_proj"}
MAMBA1_MIXER = {**MIXER, "x_proj": "x_proj", "dt_proj.weight": "dt_proj.weight", "dt_proj.bias": "dt_bias"}
MAMBA2_MIXER = {**MIXER, "dt_bias": "dt_bias", "norm": "norm"}


def under(prefix: str, names: dict[str, str], ours: str = "attention") -> dict[str, str]:
    """The names of a part of a layer, theirs under `prefix`."""
    return {f"{prefix}.{theirs}": f"{ours}.{name}" for theirs, name in names.items()}


def _converter(kind: str, architecture: str, config: Any, to_hf: Any, mixer: dict[str, str]) -> Converter:
    layer = rename({"norm": "attn_norm", **under("mixer", mixer)})
    return Converter(kind, architecture, config, to_hf, [*rename(OUTER), *per_layer("backbone.layers.{i}.", layer)])


MAMBA = _converter("mamba", "MambaForCausalLM", config_from_mamba, mamba_to_hf, MAMBA1_MIXER)
MAMBA2 = _converter("mamba2", "Mamba2ForCausalLM", config_from_mamba2, mamba2_to_hf, MAMBA2_MIXER)
