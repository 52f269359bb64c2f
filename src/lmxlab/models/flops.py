"""FLOPs of a model by formula: each component counts its own matrix products."""

from lmxlab.core.components import attention_registry, ffn_registry
from lmxlab.core.config import ModelConfig


def forward_flops_per_token(config: ModelConfig, seq_len: int | None = None) -> int:
    """Forward FLOPs per token, the output projection among them.

    Args:
        seq_len: tokens that attend to each other; by default each block's `max_seq_len`.
    """
    total = 2 * config.block.d_model * config.vocab_size
    for layer in range(config.n_layers):
        block = config.get_block_config(layer)
        length = block.max_seq_len if seq_len is None else seq_len
        total += attention_registry.get(block.attention).flops(block, length)
        total += ffn_registry.get(block.ffn).flops(block)
    return total


def mtp_flops_per_token(config: ModelConfig, seq_len: int | None = None) -> int:
    """Forward FLOPs per token that the prediction heads add to a training step; the k-th runs on T - k of T tokens.

    Args:
        seq_len: T; by default `max_seq_len` of the last block, whose kind the heads are.
    """
    block = config.get_block_config(config.n_layers - 1)
    length = block.max_seq_len if seq_len is None else seq_len
    total = 0
    for k in range(1, min(config.mtp_n_predict, length - 1) + 1):
        own = 2 * 2 * block.d_model**2 + 2 * block.d_model * config.vocab_size  # projection of two inputs, and output
        own += attention_registry.get(block.attention).flops(block, length - k)
        total += (length - k) * (own + ffn_registry.get(block.ffn).flops(block))
    return round(total / length)
