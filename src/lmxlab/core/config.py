"""Configs of a block and of a model: frozen, checked at construction, and round-tripping through plain types."""

import math
from dataclasses import dataclass, field
from typing import Any

from lmxlab.core.combinations import check_combinations, check_grouping
from lmxlab.core.fields import Derived, check, check_positive, check_types, known, plain
from lmxlab.core.mamba_options import MambaOptions, Multipliers
from lmxlab.core.rope_scaling import RopeScaling
from lmxlab.errors import UnknownNameError, UserError

NORM_PLACEMENTS = ("pre", "post", "branch", "sandwich")
EMBEDDING_POSITIONS = ("sinusoidal", "learned")  # added once to the embeddings, by the model


@dataclass(frozen=True)
class BlockConfig:
    """Every option of one block. `attention`, `ffn`, `norm` and `position` are keys of their registries.

    Args:
        attention, ffn: "none" leaves the branch out.
        n_heads, n_kv_heads: query heads, and key/value heads (None: as many; "mha" ignores it).
        head_dim: channels per head; d_model // n_heads when not given.
        bias: whether linear layers and LayerNorm carry a bias; `attention_bias` overrides it for q, k, v, o.
        dropout: of the embeddings and of each branch's output.
        activation: of the "standard" FFN "gelu" (by erf) or "gelu_tanh" (GPT-2's), of the "gated" one "silu" or
            "gelu_tanh"; None: the first. Experts are gated with either of the latter, and have no gate with "relu2".
        max_seq_len: context length in tokens: the size of a learned position table, and the trained length.
        pre_norm: x + f(norm(x)); else norm(x + f(x)). `norm_placement` overrides it: "pre", "post", "branch"
            for x + norm(f(x)) (OLMo 2), "sandwich" for x + norm(f(norm(x))) (Gemma 2).
        norm_plus_one: RMSNorms scale by 1 + weight (Gemma), the weight starting at 0.
        qk_norm: RMSNorm of each head's q and k before the rotation; with `qk_norm_joint` of all heads together.
        output_bias: overrides `attention_bias` for o.
        attention_scale: of the scores, instead of 1 / sqrt(head_dim).
        attention_softcap: scores s become cap tanh(s / cap) (Gemma 2).
        mamba_options: what state-space mixers differ in, beside the mamba_* fields.
        multipliers: constant factors in a block (Falcon-H1).
        partial_rotary_factor: the share of each head's channels, the first ones, that rope rotates (Qwen3-Next: 0.25).
        output_gate: attention's output is multiplied by sigmoid(W x), per channel, before o (Qwen3-Next).
        linear_n_key_heads, linear_n_value_heads, linear_key_head_dim, linear_value_head_dim: of "gated_deltanet";
            n_heads and head_dim when not given.
        rope_interleaved: rope turns neighbouring channels (2i, 2i + 1) together, not halves.
        qk_l2_norm: each head's q and k are divided by their root mean square after the rotation (Llama 4).
        temperature_floor, temperature_scale: queries grow with their position: see `attention.query_temperature`.
        kv_lora_rank, q_lora_rank, rope_dim, qk_nope_head_dim, v_head_dim: see `mla.MLA`.
        index_n_heads, index_head_dim, index_top_k: see `dsa.DSA`.
        moe_n_groups, moe_topk_groups: neighbouring experts form groups; a token chooses within its best groups.
        moe_routed_scaling_factor: on the weights of the routed experts.
        router_scores, router_normalized, router_balanced: see `router.Router`; None: as the FFN says.
        router_balance_step: how far the balancing biases move in a step of training.
        router_scales_input: weights multiply what goes into an expert, not what comes out (Llama 4).
        shared_expert_gate: the shared expert's output is multiplied by sigmoid(w x).
        mup: attention scores scaled by 1 / head_dim instead of 1 / sqrt(head_dim) (2203.03466).

    Raises:
        UserError: a field that cannot work; the message says which, what it was and what would do.

    >>> BlockConfig(d_model=64, n_heads=4).head_dim
    16
    >>> from dataclasses import replace
    >>> replace(BlockConfig(d_model=64, n_heads=4), d_model=128).head_dim
    32
    >>> BlockConfig(d_model=64, n_heads=5)
    Traceback (most recent call last):
    lmxlab.errors.UserError: d_model 64 is not divisible by n_heads 5; change one of them or set head_dim
    """

    attention: str = "mha"
    ffn: str = "standard"
    norm: str = "layer_norm"
    position: str = "sinusoidal"
    d_model: int = 512
    n_heads: int = 8
    n_kv_heads: int | None = None
    d_ff: int = 2048
    bias: bool = True
    dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_seq_len: int = 2048
    pre_norm: bool = True
    window_size: int | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    rope_dim: int | None = None
    n_experts: int | None = None
    top_k_experts: int = 2
    n_shared_experts: int | None = None
    conv_kernel_size: int = 4
    use_short_conv: bool = False
    mamba_n_heads: int | None = None
    mamba_head_dim: int | None = None
    ssm_state_size: int = 128
    mamba_expand: int = 2
    mamba_n_groups: int = 1
    mamba_chunk_size: int = 128
    mamba_bc_norm: bool = False
    mamba_trapezoidal: bool = False
    mamba_complex_a: bool = False
    moe_latent_size: int | None = None
    moe_d_ff: int | None = None
    shared_expert_d_ff: int | None = None
    moe_routed_scaling_factor: float = 1.0
    moe_n_groups: int = 1
    moe_topk_groups: int = 1
    qk_norm: bool = False
    attention_chunk_size: int | None = None
    mup: bool = False
    sparse_compress_ratio: int | None = None
    sparse_select_k: int | None = None
    head_dim: int = field(default=None, kw_only=True)  # type: ignore[assignment]  # None asks for the derived one
    attention_bias: bool | None = field(default=None, kw_only=True)
    output_bias: bool | None = field(default=None, kw_only=True)
    activation: str | None = field(default=None, kw_only=True)
    norm_placement: str | None = field(default=None, kw_only=True)
    norm_plus_one: bool = field(default=False, kw_only=True)
    qk_norm_joint: bool = field(default=False, kw_only=True)
    attention_scale: float | None = field(default=None, kw_only=True)
    attention_softcap: float | None = field(default=None, kw_only=True)
    rope_scaling: RopeScaling | None = field(default=None, kw_only=True)
    mamba_options: MambaOptions | None = field(default=None, kw_only=True)
    multipliers: Multipliers | None = field(default=None, kw_only=True)
    partial_rotary_factor: float = field(default=1.0, kw_only=True)
    output_gate: bool = field(default=False, kw_only=True)
    linear_n_key_heads: int | None = field(default=None, kw_only=True)
    linear_n_value_heads: int | None = field(default=None, kw_only=True)
    linear_key_head_dim: int | None = field(default=None, kw_only=True)
    linear_value_head_dim: int | None = field(default=None, kw_only=True)
    rope_interleaved: bool = field(default=False, kw_only=True)
    qk_l2_norm: bool = field(default=False, kw_only=True)
    temperature_floor: int | None = field(default=None, kw_only=True)
    temperature_scale: float = field(default=0.1, kw_only=True)
    router_scores: str | None = field(default=None, kw_only=True)
    router_normalized: bool | None = field(default=None, kw_only=True)
    router_balanced: bool | None = field(default=None, kw_only=True)
    router_balance_step: float = field(default=1e-3, kw_only=True)
    router_scales_input: bool = field(default=False, kw_only=True)
    shared_expert_gate: bool = field(default=False, kw_only=True)
    qk_nope_head_dim: int | None = field(default=None, kw_only=True)
    v_head_dim: int | None = field(default=None, kw_only=True)
    index_n_heads: int | None = field(default=None, kw_only=True)
    index_head_dim: int | None = field(default=None, kw_only=True)
    index_top_k: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("moe_n_groups", "moe_topk_groups", "d_model", "n_heads", "d_ff", "max_seq_len"):
            check_positive(self, name)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        check(self.norm_eps > 0, "norm_eps", self.norm_eps, "above 0")
        check(self.rope_theta > 0, "rope_theta", self.rope_theta, "above 0")
        if self.norm_placement not in (None, *NORM_PLACEMENTS):
            raise UnknownNameError("norm_placement", str(self.norm_placement), NORM_PLACEMENTS)
        for name in ("attention_scale", "attention_softcap"):
            if getattr(self, name) is not None:
                check(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        if self.head_dim is None or isinstance(self.head_dim, Derived):
            if self.attention != "none" and self.d_model % self.n_heads:
                raise UserError(
                    f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                    "change one of them or set head_dim"
                )
            object.__setattr__(self, "head_dim", Derived(self.d_model // self.n_heads))
        if self.attention not in ("mha", "none"):
            check_grouping(self)
        check_combinations(self)

    @property
    def effective_n_kv_heads(self) -> int:
        """Key/value heads: n_kv_heads, or n_heads when unset."""
        return self.n_kv_heads or self.n_heads

    @property
    def effective_attention_bias(self) -> bool:
        """Whether q, k and v have a bias: attention_bias, or bias when unset."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def effective_attention_scale(self) -> float:
        """What attention scores are multiplied by: attention_scale, 1 / head_dim under muP, or 1 / sqrt(head_dim)."""
        head_dim = int(self.head_dim)
        return self.attention_scale or (1 / head_dim if self.mup else 1 / math.sqrt(head_dim))

    @property
    def rotary_dim(self) -> int:
        """How many of a head's channels rope rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def effective_norm_placement(self) -> str:
        """`norm_placement`, or what `pre_norm` says when it is unset."""
        return self.norm_placement or ("pre" if self.pre_norm else "post")


@dataclass(frozen=True)
class ModelConfig:
    """A block template, the vocabulary, the depth, and what the whole model shares.

    Args:
        tie_embeddings: whether the output projection is the embedding matrix.
        block_configs: a config for every layer, instead of `block` for all.
        mup_base_width: the d_model that muP's learning rates were tuned at (2203.03466); None: no muP.
        mtp_n_predict, mtp_lambda: extra prediction heads that training adds, and the weight of their loss.
        embed_scale: embeddings are multiplied by it on the way in (sqrt(d_model) in Vaswani et al. 2017).
        logit_scale: logits are multiplied by it (Falcon-H1).
        logit_softcap: logits z become cap tanh(z / cap) (Gemma 2).
        gradient_checkpointing: while training, only the inputs of the blocks are kept for the backward pass, and each
            block is computed again there (1604.06174): memory for about a third more time.

    >>> config = ModelConfig(BlockConfig(d_model=64, n_heads=4), n_layers=2)
    >>> config.get_block_config(1) is config.block, ModelConfig.from_dict(config.to_dict()) == config
    (True, True)
    """

    block: BlockConfig = field(default_factory=BlockConfig)
    vocab_size: int = 32000
    n_layers: int = 6
    tie_embeddings: bool = True
    block_configs: tuple[BlockConfig, ...] | None = None
    mup_base_width: int | None = None
    mtp_n_predict: int = 0
    mtp_lambda: float = 0.1
    embed_scale: float = field(default=1.0, kw_only=True)
    logit_softcap: float | None = field(default=None, kw_only=True)
    logit_scale: float = field(default=1.0, kw_only=True)
    gradient_checkpointing: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocab_size", "n_layers"):
            check_positive(self, name)
        check(self.mtp_n_predict >= 0, "mtp_n_predict", self.mtp_n_predict, "0 or more")
        check(self.embed_scale > 0, "embed_scale", self.embed_scale, "above 0")
        if self.logit_softcap is not None:
            check(self.logit_softcap > 0, "logit_softcap", self.logit_softcap, "above 0")
        if self.block_configs is None:
            return
        object.__setattr__(self, "block_configs", tuple(self.block_configs))
        if len(self.block_configs) != self.n_layers:
            raise UserError(
                f"block_configs has {len(self.block_configs)} entries, n_layers is {self.n_layers}; give one per layer"
            )
        for i, block in enumerate(self.block_configs):
            if block.d_model != self.block.d_model:
                raise UserError(
                    f"block_configs[{i}].d_model is {block.d_model}; it must be block.d_model, {self.block.d_model}"
                )

    @property
    def width_mult(self) -> float:
        """d_model / mup_base_width; 1.0 without muP."""
        return self.block.d_model / self.mup_base_width if self.mup_base_width else 1.0

    def get_block_config(self, layer_idx: int) -> BlockConfig:
        """The config of one layer: its override, else the very object `block`."""
        return self.block if self.block_configs is None else self.block_configs[layer_idx]

    def to_dict(self) -> dict[str, Any]:
        """Plain types that JSON and TOML can hold; what is None or derived is left out."""
        return plain(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelConfig":
        """The config that `to_dict` wrote; fields left out take their defaults.

        Raises:
            UnknownNameError: a key that no field has.
        """
        given = dict(known(cls, data))
        if "block" in given:
            given["block"] = _block_from_dict(given["block"])
        if given.get("block_configs") is not None:
            given["block_configs"] = tuple(_block_from_dict(block) for block in given["block_configs"])
        return cls(**given)


def _block_from_dict(data: dict[str, Any]) -> BlockConfig:
    given = dict(known(BlockConfig, data))
    nested: dict[str, type] = {"rope_scaling": RopeScaling, "mamba_options": MambaOptions, "multipliers": Multipliers}
    for name, kind in nested.items():
        if given.get(name) is not None:
            given[name] = kind(**known(kind, given[name]))
    return BlockConfig(**given)
