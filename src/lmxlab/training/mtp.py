"""Multi-token prediction: training a model to say the tokens after the next one, too (2404.19737, 2412.19437)."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.mtp import MTPHead
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.mtp import finished, head_states
from lmxlab.training.objective import Loss, Objective, next_token, scored_sum

__all__ = ["MTPHead", "MultiTokenPrediction", "multi_token"]


class MultiTokenPrediction(nn.Module):
    """A model and heads that predict `n_predict` tokens beyond the next one.

    The heads are chained: the k-th reads the states of the one before and the embedding of token i + k, and predicts
    token i + k + 1 through the model's own final norm and output projection (DeepSeek-V3, 2412.19437, section 2.2).

    A LanguageModel with `mtp_n_predict` in its config has such heads itself; this is for one that has none. A Trainer
    trains both by `multi_token`; `inference.MTPDrafter(wrapper.model, wrapper.mtp_heads)` drafts with them.

    Args:
        model: its parameters are trained with the heads'.
        n_predict: D, how many heads.
        mtp_weight: lambda, of their loss.
        block_config: of the heads' blocks; the model's last one by default.

    Raises:
        UserError: no heads, a negative weight, or a block of another width.
    """

    def __init__(
        self,
        model: LanguageModel,
        n_predict: int = 2,
        mtp_weight: float = 0.3,
        block_config: BlockConfig | None = None,
    ):
        super().__init__()
        config = model.config
        if n_predict < 1 or mtp_weight < 0:
            raise UserError(
                f"n_predict is {n_predict} and mtp_weight {mtp_weight}: give at least 1 head, and a weight of 0 or more"
            )
        block = block_config or config.get_block_config(config.n_layers - 1)
        if block.d_model != config.block.d_model:
            raise UserError(
                f"block_config.d_model is {block.d_model}, the model's {config.block.d_model}: heads share its width"
            )
        self.model = model
        self.n_predict = n_predict
        self.mtp_weight = mtp_weight
        self.mtp_heads = [MTPHead(block.d_model, block) for _ in range(n_predict)]

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.model.config

    def __call__(self, x: mx.array, targets: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        """Tokens x and the next tokens, both (B, T); a negative target is not scored.

        Returns:
            The model's logits (B, T, vocab_size), and main_loss, mtp_loss and total_loss, as `multi_token` has them.
        """
        hidden, _ = self.model.hidden_states(x)
        logits = self.model.logits(hidden)
        main, counted = scored_sum(kernels.cross_entropy(logits, mx.maximum(targets, 0)), targets)
        ahead = heads_nats(self.model, self.mtp_heads, hidden, x, targets)
        main, ahead = main / mx.maximum(counted, 1), ahead / mx.maximum(counted, 1)
        return logits, {"main_loss": main, "mtp_loss": ahead, "total_loss": main + self.mtp_weight * ahead}

    def nats(self, x: mx.array, y: mx.array, segments: mx.array | None = None) -> mx.array:
        """As LanguageModel.nats: of the model alone."""
        return self.model.nats(x, y, segments)


def multi_token(model: Any, x: mx.array, y: mx.array, segments: mx.array | None = None) -> Loss:
    """Objective L_main + lambda / D sum_k L_k, of a LanguageModel with `mtp_heads` or a MultiTokenPrediction.

    L_k sums the k-th head's cross-entropy over its T - k targets and divides by all T, as DeepSeek-V3 does (2412.19437,
    equations 24 and 25). While the model is evaluated the loss is L_main alone; mtp_loss, which is
    sum_k L_k / D, is told all the same.

    Args:
        x, y: tokens and next tokens (B, T); negative ones among y are not scored, by no head.
        segments: (B, T) the documents of each row; nothing is predicted from one about the next.
    """
    trunk, weight = model, model.config.mtp_lambda
    if isinstance(model, MultiTokenPrediction):
        trunk, weight = model.model, model.mtp_weight
    hidden, _ = trunk.hidden_states(x, segments=segments)
    main, counted = scored_sum(trunk.nats_of(hidden, mx.maximum(y, 0)), y)
    ahead = heads_nats(trunk, model.mtp_heads, hidden, x, y, segments)
    total = main + weight * ahead if model.training else main
    return Loss(total, counted, {"main_loss": main, "mtp_loss": ahead})


def default_objective(model: nn.Module) -> Objective:
    """What a Trainer minimises when it is not told: `multi_token` for a model with heads, else `next_token`."""
    return multi_token if getattr(model, "mtp_heads", None) else next_token


def heads_nats(
    model: LanguageModel,
    heads: Sequence[MTPHead],
    hidden: mx.array,
    x: mx.array,
    y: mx.array,
    segments: mx.array | None = None,
) -> mx.array:
    """Cross-entropy summed over the targets of each head, the mean over heads: a float32 scalar.

    Args:
        hidden: `model.hidden_states(x)`.
        x, y, segments: as in `multi_token`.
    """
    total = mx.array(0.0)
    for k, states in enumerate(head_states(model, heads, hidden, x, segments), start=1):
        targets = y[:, k:]
        if segments is not None:
            targets = mx.where(segments[:, k:] == segments[:, :-k], targets, -1)
        total = total + scored_sum(model.nats_of(finished(model, states), mx.maximum(targets, 0)), targets)[0]
    return total / len(heads)
