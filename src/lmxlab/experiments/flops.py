"""FLOPs of a model by formula: the currency of equal-compute comparisons.

Counted are the multiply-adds of matrix products, 2 FLOPs each (2001.08361, section 2.1): projections, attention scores
and their use (the full square, though half of it is masked), feed-forward, unembedding. Norms, activations, rotations
and the embedding look-up are not counted.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from lmxlab.errors import UserError

if TYPE_CHECKING:
    from lmxlab.core.config import BlockConfig, ModelConfig
    from lmxlab.models.base import LanguageModel

BACKWARD = 2  # per product of the forward pass, one for the gradient of its input and one for that of its weight


def estimate_flops_per_token(model_config: "ModelConfig", seq_len: int | None = None) -> int:
    """Forward FLOPs per token.

    Args:
        seq_len: tokens that attend to each other; by default each block's `max_seq_len`. Give the length that is really
            run: attention costs in proportion to it.

    Raises:
        UserError: a component, or prediction heads, that this table does not know. It is never counted as 0.
    """
    if model_config.mtp_n_predict:
        raise UserError("FLOPs of multi-token prediction heads are not known: set mtp_n_predict to 0")
    total = 2 * model_config.block.d_model * model_config.vocab_size
    for layer in range(model_config.n_layers):
        block = model_config.get_block_config(layer)
        length = block.max_seq_len if seq_len is None else seq_len
        _check(ATTENTION_FLOPS, "attention", block.attention)
        _check(FFN_FLOPS, "ffn", block.ffn)
        total += ATTENTION_FLOPS[block.attention](block, length) + FFN_FLOPS[block.ffn](block)
    return total


def estimate_flops_per_step(
    model_config: "ModelConfig | LanguageModel", batch_size: int, seq_len: int, attention_len: int | None = None
) -> int:
    """FLOPs of one training step, forward and backward: per-token FLOPs * batch_size * seq_len * 3.

    Args:
        model_config: a config, or a model, whose config is taken.
        batch_size: sequences per step; with gradient accumulation those of all micro-batches.
        seq_len: tokens per sequence.
        attention_len: the length that attention is counted at; by default the blocks' `max_seq_len`, whatever `seq_len`
            is. A budget gives `attention_len=seq_len`.
    """
    config = cast("ModelConfig", getattr(model_config, "config", model_config))
    return estimate_flops_per_token(config, attention_len) * batch_size * seq_len * (1 + BACKWARD)


def _self_attention(block: "BlockConfig", n_kv_heads: int, seq_len: int) -> int:
    width, kv_width = block.n_heads * block.head_dim, n_kv_heads * block.head_dim
    projections = 2 * block.d_model * (2 * width + 2 * kv_width)  # q and o; k and v
    return projections + 2 * 2 * seq_len * width  # scores q k^T; weights times v


def _mha(block: "BlockConfig", seq_len: int) -> int:
    return _self_attention(block, block.n_heads, seq_len)  # n_kv_heads is ignored, as the module does


def _gqa(block: "BlockConfig", seq_len: int) -> int:
    return _self_attention(block, block.effective_n_kv_heads, seq_len)


def _ffn(matrices: int) -> Callable[["BlockConfig"], int]:
    return lambda block: 2 * matrices * block.d_model * block.d_ff


ATTENTION_FLOPS: dict[str, Callable[["BlockConfig", int], int]] = {
    "mha": _mha,
    "gqa": _gqa,
    # In training every score is computed and then masked: what is run is what is counted.
    "sliding_window_gqa": _gqa,
    "chunked_gqa": _gqa,
    "none": lambda block, seq_len: 0,
}

FFN_FLOPS: dict[str, Callable[["BlockConfig"], int]] = {
    "standard": _ffn(2),
    "relu2": _ffn(2),
    "gated": _ffn(3),
    "gated_relu2": _ffn(3),
    "none": lambda block: 0,
}


def _check(table: Mapping[str, object], kind: str, name: str) -> None:
    if name not in table:
        raise UserError(f"No FLOP formula for {kind} {name!r}; there is one for {sorted(table)}: add it in flops.py")
