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
