"""Group-relative policy optimisation (2402.03300), with what DAPO, Dr. GRPO and GSPO changed in it."""

import math
from dataclasses import dataclass

import mlx.core as mx

from lmxlab.errors import UnknownNameError, UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training.logprobs import reference_logprobs, token_logprobs, until_stop
from lmxlab.training.objective import Loss

LOSS_TYPES = ("grpo", "dapo", "dr_grpo", "cispo")
RATIOS = ("token", "sequence")
SCALES = ("group", "batch", "none")
SPREAD = 1e-4  # added to the standard deviation


def group_advantages(rewards: mx.array, groups: mx.array | None = None, scale: str = "group") -> mx.array:
    """How much better each completion is than the mean of its group: (r - mean) / (std + 1e-4), (B,) float32.

    Exactly 0 in a group whose rewards are all equal, and NaN in one with a reward of NaN.

    Args:
        rewards: (B,).
        groups: (B,) integers, equal for completions of one prompt; None: all are one group.
        scale: the standard deviation (of a sample: n - 1) of the group; of the "batch" (2508.08221); or "none", since
            dividing by it favours prompts that are nearly always or nearly never solved (Dr. GRPO, 2503.20783).

    Raises:
        UserError: a single completion, which has nothing to be compared with.
    """
    if scale not in SCALES:
        raise UnknownNameError("scale of rewards", scale, SCALES)
    if rewards.ndim != 1 or rewards.size < 2:
        raise UserError(f"The rewards are {rewards.shape}; a group takes at least 2 completions, rewards (B,).")
    r = rewards.astype(mx.float32)
    ids = mx.zeros(r.shape, mx.int32) if groups is None else groups
    same = ids[:, None] == ids[None, :]
    size = same.astype(mx.float32).sum(axis=1)
    centred = r - mx.where(same, r, 0).sum(axis=1) / size  # a NaN times a weight of 0 would be in every group
    flat = mx.where(same, r, -mx.inf).max(axis=1) == mx.where(same, r, mx.inf).min(axis=1)
    if scale == "group":
        variance = mx.where(same, mx.square(centred), 0).sum(axis=1) / mx.maximum(size - 1, 1)
        centred = centred / (mx.sqrt(variance) + SPREAD)
    elif scale == "batch":
        variance = mx.square(r - r.mean()).sum() / (r.size - 1)
        centred = centred / (mx.sqrt(variance) + SPREAD)
    return mx.where(flat, 0.0, centred)  # the mean of equal numbers is not always that number


@dataclass(frozen=True)
class GRPO:
    """The objective: a clipped policy gradient for each completion token, and a penalty on leaving the reference.

    With the ratio w = p(token) / p_sampled(token) and the advantage A of the completion, a token's loss is

        -min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta k3,   k3 = exp(q) - q - 1,
        q = log p_ref(token) - log p(token)

    k3 is an estimate of KL(p, p_ref) that is never negative. The tokens' losses are put together by `loss_type`:

        grpo        mean over each completion, then over completions (2402.03300)
        dapo        mean over all tokens of the step, so that a token of a long completion counts as much (2503.14476)
        dr_grpo     sum over tokens / (completions * max_tokens), a constant (2503.20783)
        cispo       as dapo, of -min(w, epsilon_high) A log p, the weight without a gradient (2506.13585); epsilon_high
                    is the bound itself

    Called with a batch of `Rollouts`; counts completions (grpo, dr_grpo) or their tokens. Metrics: mean_reward,
    completion_tokens, kl (k3 per token), clipped (the share of tokens whose gradient the clip with epsilon removes; of
    cispo: whose weight it bounds), ratio (mean w).

    Attributes:
        beta: weight of the penalty; 0 leaves it out.
        epsilon, epsilon_high: how far the ratio counts; clipped higher above (DAPO: 0.2 and 0.28), by default alike.
        loss_type: as above.
        ratio: of each "token", or the geometric mean over the "sequence" (GSPO, 2507.18071).
        delta: also clips w, where A is negative, at this (2505.07291).
        max_tokens: the constant of dr_grpo.
        temperature: divides the logits, as it did in sampling.
    """

    beta: float = 0.1
    epsilon: float = 0.2
    epsilon_high: float | None = None
    loss_type: str = "grpo"
    ratio: str = "token"
    delta: float | None = None
    max_tokens: int | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise UnknownNameError("GRPO loss", self.loss_type, LOSS_TYPES)
        if self.ratio not in RATIOS:
            raise UnknownNameError("ratio", self.ratio, RATIOS)
        if not 0 <= self.beta < math.inf:
            raise UserError(f"beta is {self.beta}; it must be a number of 0 or more.")
        if not 0 < self.epsilon <= 1:
            raise UserError(f"epsilon is {self.epsilon}; it must be above 0 and at most 1.")
        if self.epsilon_high is not None and not self.epsilon_high > 0:
            raise UserError(f"epsilon_high is {self.epsilon_high}; it must be above 0.")
        if self.delta is not None and not self.delta > 1 + self.high:
            raise UserError(f"delta is {self.delta}; it must be above 1 + epsilon_high, {1 + self.high}.")
        if self.loss_type == "cispo" and (self.epsilon_high or 0) < 1:
            raise UserError("cispo bounds the ratio itself: give epsilon_high, above 1 (5.0 in 2510.13786).")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"temperature is {self.temperature}; completions that differ need one above 0.")
        if self.loss_type == "dr_grpo" and not (self.max_tokens and self.max_tokens > 0):
            raise UserError("dr_grpo divides by max_tokens: give the most tokens that a completion may have.")

    @property
    def high(self) -> float:
        return self.epsilon if self.epsilon_high is None else self.epsilon_high

    def __call__(
        self,
        model: LanguageModel,
        tokens: mx.array,
        mask: mx.array,
        advantages: mx.array,
        rewards: mx.array,
        sampled: mx.array | None = None,
        reference: mx.array | None = None,
    ) -> Loss:
        """Sums over B completions.

        Args:
            tokens: prompt, completion and padding on the right, (B, T) token ids.
            mask: (B, T - 1), 1 where the next token is one of the completion, up to and including its end.
            advantages: (B,), see `group_advantages`.
            rewards: (B,), told only.
            sampled: (B, T - 1) log-probabilities under the policy that sampled them, at the same temperature; None:
                the policy as it is now, whose ratio is 1.
            reference: (B, T - 1) log-probabilities under the reference; needed unless beta is 0.
        """
        logprobs = token_logprobs(model, tokens, self.temperature)
        return self.score(logprobs, mask, advantages, rewards, sampled, reference)

    def score(
        self,
        logprobs: mx.array,
        mask: mx.array,
        advantages: mx.array,
        rewards: mx.array,
        sampled: mx.array | None = None,
        reference: mx.array | None = None,
    ) -> Loss:
        """As a call, from the log-probabilities under the policy, (B, T - 1)."""
        lengths = mx.maximum(mask.sum(axis=1), 1)
        log_ratio = (logprobs - mx.stop_gradient(logprobs if sampled is None else sampled)) * mask
        if self.ratio == "sequence":
            log_ratio = log_ratio.sum(axis=1, keepdims=True) / lengths[:, None]
        weights, a = mx.exp(log_ratio), advantages[:, None]
        losses = self._surrogate(weights, a, logprobs)
        gone = self._clipped(weights, a)
        tokens = {"clipped": gone.astype(mx.float32), "ratio": weights}
        if self.beta:
            if reference is None:
                raise UserError("The penalty needs log-probabilities of the reference: give them, or beta 0.")
            q = (mx.stop_gradient(reference) - logprobs) * mask
            tokens["kl"] = mx.exp(q) - q - 1
            losses = losses + self.beta * tokens["kl"]
        losses, n = losses * mask, mx.array(float(mask.shape[0]))
        if self.loss_type == "grpo":
            total, counted = (losses.sum(axis=1) / lengths).sum(), n
        elif self.loss_type == "dr_grpo":
            total, counted = losses.sum() / float(self.max_tokens or 1), n
        else:
            total, counted = losses.sum(), mask.sum()
        # Metrics are told as their sum over what is counted: a mean over tokens or completions, times that number.
        n_tokens = mx.maximum(mask.sum(), 1)
        means = {name: mx.stop_gradient((values * mask).sum() / n_tokens) for name, values in tokens.items()}
        means |= {"mean_reward": rewards.mean(), "completion_tokens": mask.sum() / n}
        return Loss(total, counted, {name: mean * counted for name, mean in means.items()})

    def _clipped(self, weights: mx.array, advantages: mx.array) -> mx.array:
        if self.loss_type == "cispo":
            return mx.logical_and(advantages > 0, weights > self.high)
        below = mx.logical_and(advantages < 0, weights < 1 - self.epsilon)
        return mx.where(advantages > 0, weights > 1 + self.high, below)

    def _surrogate(self, weights: mx.array, advantages: mx.array, logprobs: mx.array) -> mx.array:
        if self.loss_type == "cispo":
            return -mx.stop_gradient(mx.minimum(weights, self.high)) * advantages * logprobs
        clipped = mx.clip(weights, 1 - self.epsilon, 1 + self.high)
        if self.delta is not None:
            weights = mx.minimum(weights, self.delta)
        return -mx.minimum(weights * advantages, clipped * advantages)


def grpo_loss(
    model: LanguageModel,
    ref_model: LanguageModel | None,
    prompts: mx.array,
    completions: mx.array,
    rewards: mx.array,
    beta: float = 0.1,
    epsilon: float = 0.2,
    *,
    epsilon_high: float | None = None,
    loss_type: str = "grpo",
    ratio: str = "token",
    delta: float | None = None,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    scale: str = "group",
    groups: mx.array | None = None,
    advantages: mx.array | None = None,
    completion_mask: mx.array | None = None,
    stop_id: int | None = None,
    sampled: mx.array | None = None,
    reference: mx.array | None = None,
) -> mx.array:
    """The loss of a batch of completions, a float32 scalar; see `GRPO` for the formula and its options.

    Args:
        ref_model: the reference; None where `reference` is given, beta is 0, or the model has adapters, then off.
        prompts: (B, L) token ids. Only their length counts here: so many tokens of `completions` are not scored.
        completions: (B, T) the whole sequences: prompt, completion, padding on the right.
        rewards: (B,).
        groups: (B,) integers, equal for completions of one prompt; None: all are one group.
        scale: of the rewards, see `group_advantages`.
        advantages: (B,) instead of those that rewards and groups give.
        completion_mask: (B, T - L), 1 for tokens that are scored; by default all, or up to the first `stop_id`.
        stop_id: ends a completion, and is scored itself.
        sampled: (B, T - L) log-probabilities under the policy that sampled; None: the policy itself.
        reference: (B, T - L) log-probabilities under the reference.

    Raises:
        UserError: no completion token, a batch of one, shapes that do not belong together.
    """
    start, n_tokens = prompts.shape[-1], completions.shape[-1] - prompts.shape[-1]
    if completions.ndim != 2 or n_tokens < 1:
        raise UserError(
            f"prompts are {prompts.shape} and completions {completions.shape}; completions are the whole sequences, "
            "(B, T) with prompt and at least one more token."
        )
    shape = (completions.shape[0], n_tokens)
    for name, array in (("completion_mask", completion_mask), ("sampled", sampled), ("reference", reference)):
        if array is not None and array.shape != shape:
            raise UserError(f"{name} is {array.shape}; it must be (B, T - L), here {shape}.")
    objective = GRPO(beta, epsilon, epsilon_high, loss_type, ratio, delta, max_tokens or n_tokens, temperature)
    if advantages is None:
        advantages = group_advantages(rewards, groups, scale)
    if completion_mask is None:
        completion_mask = mx.ones(shape) if stop_id is None else until_stop(completions[:, start:], stop_id)
    logprobs = token_logprobs(model, completions, temperature)[:, start - 1 :]
    if beta and reference is None:
        reference = reference_logprobs(model, ref_model, completions, temperature)[:, start - 1 :]
    mask = completion_mask.astype(mx.float32)
    total, counted, _ = objective.score(logprobs, mask, advantages, rewards, sampled, reference)
    return total / mx.maximum(counted, 1)
