"""FLOPs of a model by formula: the currency of equal-compute comparisons.

Counted are the multiply-adds of matrix products, 2 FLOPs each (2001.08361, section 2.1): projections, attention scores
and their use (the full square, though half of it is masked), feed-forward, unembedding. Norms, activations, rotations
and the embedding look-up are not counted.
"""

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from lmxlab.core.config import ModelConfig
    from lmxlab.models.base import LanguageModel

BACKWARD = 2  # per product of the forward pass, one for the gradient of its input and one for that of its weight


def estimate_flops_per_token(model_config: "ModelConfig", seq_len: int | None = None) -> int:
    """Forward FLOPs per token, those of prediction heads included, which training runs with the model.

    Args:
        seq_len: tokens that attend to each other; by default each block's `max_seq_len`. Give the length that is really
            run: attention costs in proportion to it.

    Raises:
        UserError: a component whose cost is not known. It is never counted as 0.
    """
    # It needs MLX, which reading results does not.
    from lmxlab.models.flops import forward_flops_per_token, mtp_flops_per_token

    return forward_flops_per_token(model_config, seq_len) + mtp_flops_per_token(model_config, seq_len)


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
