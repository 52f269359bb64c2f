"""Direct preference optimisation (2305.18290), and the losses that grew from it."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx
import numpy as np

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training.config import TrainConfig
from lmxlab.training.logprobs import after_prompt, before_padding, reference_logprobs, token_logprobs
from lmxlab.training.objective import Loss
from lmxlab.training.step import Precision

if TYPE_CHECKING:
    from lmxlab.data.preferences import Preferences


class Pairs(NamedTuple):
    """What the losses see of each pair, arrays (B,): log-ratios of policy and reference, summed over completions."""

    chosen: mx.array
    rejected: mx.array
    chosen_tokens: mx.array
    rejected_tokens: mx.array
    chosen_score: mx.array  # f'(ratio) of the divergence; the log-ratio itself for the reverse KL
    rejected_score: mx.array

    @property
    def delta(self) -> mx.array:
        return self.chosen_score - self.rejected_score

    @property
    def mean_delta(self) -> mx.array:
        """The difference of the scores per token."""
        return self.chosen_score / self.chosen_tokens - self.rejected_score / self.rejected_tokens


def _softplus(x: mx.array) -> mx.array:
    return mx.logaddexp(x, mx.array(0.0))


def _sigmoid(pairs: Pairs, beta: float, flipped: float) -> mx.array:
    x = beta * pairs.delta
    return (1 - flipped) * _softplus(-x) + flipped * _softplus(x)


def _robust(pairs: Pairs, beta: float, flipped: float) -> mx.array:
    x = beta * pairs.delta
    return ((1 - flipped) * _softplus(-x) - flipped * _softplus(x)) / (1 - 2 * flipped)


def _hinge(pairs: Pairs, beta: float, _: float) -> mx.array:
    return mx.maximum(1 - beta * pairs.delta, 0)


def _ipo(pairs: Pairs, beta: float, _: float) -> mx.array:
    return mx.square(pairs.mean_delta - 1 / (2 * beta))


def _sigmoid_norm(pairs: Pairs, beta: float, _: float) -> mx.array:
    return _softplus(-beta * pairs.mean_delta)


def _exo_pair(pairs: Pairs, beta: float, flipped: float) -> mx.array:
    x = beta * pairs.delta
    won = mx.sigmoid(x) * (-_softplus(-x) - math.log1p(-flipped))
    return won + mx.sigmoid(-x) * (-_softplus(x) - math.log(flipped))


def _nca_pair(pairs: Pairs, beta: float, _: float) -> mx.array:
    chosen, rejected = beta * pairs.chosen, beta * pairs.rejected
    return _softplus(-chosen) + 0.5 * _softplus(chosen) + 0.5 * _softplus(rejected)


def _bco_pair(pairs: Pairs, beta: float, _: float) -> mx.array:
    return _softplus(-beta * pairs.chosen) + _softplus(beta * pairs.rejected)


def _sppo_hard(pairs: Pairs, beta: float, _: float) -> mx.array:
    return mx.square(pairs.chosen - 0.5 / beta) + mx.square(pairs.rejected + 0.5 / beta)


def _apo_zero(pairs: Pairs, beta: float, _: float) -> mx.array:
    return mx.sigmoid(-beta * pairs.chosen) + mx.sigmoid(beta * pairs.rejected)


def _apo_down(pairs: Pairs, beta: float, _: float) -> mx.array:
    return mx.sigmoid(beta * pairs.chosen) + mx.sigmoid(-beta * (pairs.chosen - pairs.rejected))


def _discopop(pairs: Pairs, beta: float, _: float) -> mx.array:
    x = beta * pairs.delta
    share = mx.sigmoid(x / 0.05)
    return _softplus(-x) * (1 - share) + mx.exp(-x) * share


# Each (pairs, beta, label_smoothing) -> (B,).
LOSSES: dict[str, Callable[[Pairs, float, float], mx.array]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
SMOOTHED = ("sigmoid", "robust", "exo_pair")

# f'(t) of the divergence to the reference, from log t (2309.16240).
DIVERGENCES: dict[str, Callable[[mx.array], mx.array]] = {
    "reverse_kl": lambda log_ratio: log_ratio,
    "forward_kl": lambda log_ratio: 1 - mx.exp(-log_ratio),
    "js": lambda log_ratio: math.log(2) - _softplus(-log_ratio),
}


@dataclass(frozen=True)
class DPO:
    """The objective: a loss of how much more the policy prefers the chosen completion than its reference does.

    With the log-ratio r = log p(completion | prompt) - log p_ref(completion | prompt), summed over the completion's
    tokens, and d = r_chosen - r_rejected:

        sigmoid         -log sigmoid(beta d); with label_smoothing conservative DPO (Mitchell, 2023)
        robust          unbiased when a share label_smoothing of the pairs is the wrong way round (2403.00409)
        hinge           max(0, 1 - beta d) (2305.10425)
        ipo             (d - 1 / (2 beta))^2, of log-ratios per token (2310.12036)
        sigmoid_norm    as sigmoid, of log-ratios per token
        exo_pair        reverse KL to smoothed preferences, needs label_smoothing (2402.00856)
        nca_pair        noise contrast for each completion (2402.05369)
        bco_pair        a classifier of chosen and rejected (2404.04656), without its moving offset
        sppo_hard       squared distance of r to +- 1 / (2 beta) (2405.00675)
        apo_zero, apo_down   anchored (2408.06266)
        discopop        the found mixture (2406.08414) with temperature 0.05

    Called with a batch of `PreferenceBatches`; counts pairs. Metrics, all means over pairs: chosen_reward and
    rejected_reward (beta r), margin (their difference), accuracy (how often it is positive), and chosen_logprob and
    rejected_logprob, which tell whether both sink together.

    Attributes:
        beta: how much the distance to the reference costs; in ipo, its tau.
        loss_type: as above.
        label_smoothing: share of pairs believed to be the wrong way round, for sigmoid, robust and exo_pair.
        divergence: reverse_kl; forward_kl or js instead, for losses of d (2309.16240).
        nll_weight: of the chosen completion's cross-entropy per token, added to keep it likely (2404.19733).
        ref_model: scores batches without reference log-probabilities; see `logprobs.reference_logprobs`.
    """

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0
    divergence: str = "reverse_kl"
    nll_weight: float = 0.0
    ref_model: LanguageModel | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.loss_type not in LOSSES:
            raise UnknownNameError("DPO loss", self.loss_type, LOSSES)
        if self.divergence not in DIVERGENCES:
            raise UnknownNameError("divergence", self.divergence, DIVERGENCES)
        if not 0 < self.beta < math.inf:
            raise UserError(f"beta is {self.beta}; it must be a number above 0, such as 0.1.")
        if not 0 <= self.nll_weight < math.inf:
            raise UserError(f"nll_weight is {self.nll_weight}; it must be a number of 0 or more.")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 0.5.")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise UserError(f"label_smoothing would be ignored by {self.loss_type}: it is for {', '.join(SMOOTHED)}.")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise UserError("exo_pair needs a label_smoothing above 0, such as 0.001: it takes its logarithm.")

    def __call__(
        self,
        model: LanguageModel,
        chosen: mx.array,
        rejected: mx.array,
        chosen_mask: mx.array,
        rejected_mask: mx.array,
        ref_chosen: mx.array | None = None,
        ref_rejected: mx.array | None = None,
    ) -> Loss:
        """Sums over B pairs.

        Args:
            chosen, rejected: prompt, completion and padding on the right, (B, T) and (B, T') token ids.
            chosen_mask, rejected_mask: 1 for the tokens of the completions, of the same shapes.
            ref_chosen, ref_rejected: (B,) what `reference_sums` gives; computed here when they are missing.
        """
        tokens, mask = _together(chosen, rejected), _together(chosen_mask, rejected_mask)[:, 1:]
        sums = (token_logprobs(model, tokens) * mask).sum(axis=1)
        if ref_chosen is None or ref_rejected is None:
            reference = (reference_logprobs(model, self.ref_model, tokens) * mask).sum(axis=1)
        else:
            reference = mx.concatenate([ref_chosen, ref_rejected])
        ratios, lengths = mx.split(sums - reference, 2), mx.split(mx.maximum(mask.sum(axis=1), 1), 2)
        score = DIVERGENCES[self.divergence]
        pairs = Pairs(*ratios, *lengths, *map(score, ratios))
        losses = LOSSES[self.loss_type](pairs, self.beta, self.label_smoothing)
        if self.nll_weight:
            losses = losses - self.nll_weight * mx.split(sums, 2)[0] / pairs.chosen_tokens
        rewards = [self.beta * mx.stop_gradient(ratio) for ratio in ratios]
        logprobs = [mx.stop_gradient(part) for part in mx.split(sums, 2)]
        margins = rewards[0] - rewards[1]
        metrics = {
            **{"chosen_reward": rewards[0], "rejected_reward": rewards[1]},
            **{"margin": margins, "accuracy": (margins > 0).astype(mx.float32)},
            **{"chosen_logprob": logprobs[0], "rejected_logprob": logprobs[1]},
        }
        counted = mx.array(float(losses.size))
        return Loss(losses.sum(), counted, {name: values.sum() for name, values in metrics.items()})


def dpo_loss(
    model: LanguageModel,
    ref_model: LanguageModel | None,
    chosen: mx.array,
    rejected: mx.array,
    beta: float = 0.1,
    *,
    chosen_mask: mx.array | None = None,
    rejected_mask: mx.array | None = None,
    prompt_lengths: mx.array | None = None,
    pad_id: int | None = None,
    reference: tuple[mx.array, mx.array] | None = None,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
    divergence: str = "reverse_kl",
    nll_weight: float = 0.0,
) -> mx.array:
    """The mean loss over pairs, a float32 scalar; see `DPO` for the formulas.

    Args:
        ref_model: the reference; None where `reference` is given, or for a model with adapters, which are then off.
        chosen, rejected: token ids (B, T) and (B, T'), padded on the right.
        beta: how much the distance to the reference costs.
        chosen_mask, rejected_mask: 1 for the tokens that are scored, of the shapes of the tokens. Without masks, prompt
            lengths and pad id every token but the first is scored.
        prompt_lengths: (B,) of the prompts that both rows of a pair begin with.
        pad_id: what rows are filled up with. A row whose text itself ends in this token needs a mask.
        reference: log-probabilities of the completions under the reference, (B,) for chosen and rejected.

    Raises:
        UserError: rows that do not pair up, or an option out of its range.
    """
    if chosen.ndim != 2 or rejected.ndim != 2 or chosen.shape[0] != rejected.shape[0]:
        raise UserError(f"chosen is {chosen.shape} and rejected {rejected.shape}; both must be (B, length), B equal.")
    masks = []
    for tokens, mask in ((chosen, chosen_mask), (rejected, rejected_mask)):
        if mask is None:
            mask = mx.ones(tokens.shape)
            if prompt_lengths is not None:
                mask = mask * after_prompt(prompt_lengths, tokens.shape[1])
            if pad_id is not None:
                mask = mask * before_padding(tokens, pad_id)
        elif mask.shape != tokens.shape:
            raise UserError(f"A mask is {mask.shape}, its tokens {tokens.shape}: each token needs its own entry.")
        masks.append(mask.astype(mx.float32))
    objective = DPO(beta, loss_type, label_smoothing, divergence, nll_weight, ref_model)
    total, counted, _ = objective(model, chosen, rejected, *masks, *(reference or ()))
    return total / counted


def with_reference(
    preferences: "Preferences", ref_model: LanguageModel, batch_size: int = 16, dtype: str = "float32"
) -> "Preferences":
    """The pairs with the reference's log-probabilities, so that training holds no reference model.

    Args:
        ref_model: the reference: a model of its own, or the one that is to be trained, before it is. A model with
            adapters is taken without them.
        dtype: of the arithmetic, as `TrainConfig.dtype` of the run: rounding is then alike on both sides of a ratio.
    """
    found = []
    with Precision(TrainConfig(dtype=dtype)).computing(ref_model):
        for chosen, rejected, chosen_mask, rejected_mask, *_ in preferences.in_order(batch_size):
            tokens, mask = _together(chosen, rejected), _together(chosen_mask, rejected_mask)[:, 1:]
            sums = (reference_logprobs(ref_model, ref_model, tokens) * mask).sum(axis=1)
            found.append(np.array(sums).reshape(2, -1))
    return dataclasses.replace(preferences, reference=np.concatenate(found, axis=1))


def _together(chosen: mx.array, rejected: mx.array) -> mx.array:
    """(B, T) and (B, T') -> (2B, max of both), zeros on the right: one pass instead of two."""
    width = max(chosen.shape[1], rejected.shape[1])
    rows = [mx.pad(part, [(0, 0), (0, width - part.shape[1])]) for part in (chosen, rejected)]
    return mx.concatenate(rows)
