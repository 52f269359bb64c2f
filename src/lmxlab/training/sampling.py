"""Completions of many prompts at once from the model that is trained, with what the model thought of each token."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from lmxlab.core import kernels
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.models.decoding import decode, pad_left
from lmxlab.models.sampling import Keys, Sampler


class Decodes(Protocol):
    """A tokenizer, as far as rewards need one."""

    def decode(self, tokens: list[int]) -> str: ...


class Prompt(NamedTuple):
    """What a group of completions continues.

    Attributes:
        tokens: (L,).
        about: anything that the reward must know: the problem, its tests, the answer.
    """

    tokens: mx.array
    about: Any = None


class Completion(NamedTuple):
    """What a model wrote after a prompt.

    Attributes:
        prompt: (L,) token ids.
        tokens: (n,), the last of them the stop token if it ended.
        ended: whether it came to a stop token, rather than to the limit.
        logprobs: (n,) of each token under the policy that drew it.
        about: of its Prompt.
    """

    prompt: mx.array
    tokens: mx.array
    ended: bool
    logprobs: mx.array
    about: Any = None

    @property
    def whole(self) -> mx.array:
        """Prompt and completion, (L + n,)."""
        return mx.concatenate([self.prompt, self.tokens])

    def text(self, tokenizer: Decodes) -> str:
        """What was written, without the stop token."""
        tokens: list[int] = self.tokens.tolist()  # type: ignore[assignment]
        return tokenizer.decode(tokens[:-1] if self.ended else tokens)


# Rewards for completions, one number each.
Score = Callable[[Sequence[Completion]], Sequence[float]]


def token_reward(reward: Callable[[mx.array, mx.array], float]) -> Score:
    """A `Score` from a function of the prompt (L,) and the whole sequence (L + n,)."""
    return lambda completions: [_of_one(reward, c, c.prompt, c.whole) for c in completions]


def text_reward(reward: Callable[[str, str], float], tokenizer: Decodes) -> Score:
    """A `Score` from a function of the prompt's text and of the completion's, without its stop token."""

    def score(completions: Sequence[Completion]) -> list[float]:
        return [_of_one(reward, c, tokenizer.decode(c.prompt.tolist()), c.text(tokenizer)) for c in completions]  # type: ignore[arg-type]

    return score


def rewards_of(score: Score, completions: Sequence[Completion]) -> np.ndarray:
    """(n,) float32, checked.

    Raises:
        UserError: the function raised, or did not give one finite number for each completion.
    """
    try:
        given = score(completions)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The reward function raised {type(error).__name__}: {error}") from error
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is found below
            rewards = np.array([_number(value) for value in given], np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"The reward function must give a number for each completion, but gave {given!r}.") from error
    if rewards.shape != (len(completions),):
        raise UserError(f"The reward function gave {rewards.size} rewards for {len(completions)} completions.")
    bad = np.flatnonzero(~np.isfinite(rewards))
    if bad.size:
        tokens = completions[int(bad[0])].tokens.tolist()
        raise UserError(f"The reward function gave {rewards[bad[0]]} for the completion {tokens}: give finite numbers.")
    return rewards


def sample(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    max_tokens: int,
    temperature: float = 1.0,
    stop_tokens: Sequence[int] = (),
    keys: Keys | None = None,
) -> list[Completion]:
    """One completion of each prompt, all decoded together with a cache; repeat a prompt for a group.

    Decoding ends when all rows have. At temperature 0 the likeliest token is taken, and the log-probabilities are those
    at temperature 1.
    """
    rows, padding = pad_left([prompt.tokens.astype(mx.int32) for prompt in prompts])
    stops = frozenset(stop_tokens)
    lengths = [0] * len(prompts)
    ended = [False] * len(prompts)
    drawn, logprobs = [], []
    with evaluating(model):
        steps = decode(
            model, rows, max_tokens, Sampler(temperature), keys=keys, left_padding=padding if any(padding) else None
        )
        for tokens, logits in steps:
            drawn.append(tokens)
            # Already here, not from a pass of its own over what was drawn; nothing holds the logits after this.
            logprobs.append(-kernels.cross_entropy(logits.astype(mx.float32) / (temperature or 1.0), tokens))
            mx.async_eval(logprobs[-1])
            for i, token in enumerate(tokens.tolist()):  # type: ignore[arg-type]
                lengths[i] += not ended[i]
                ended[i] = ended[i] or token in stops
            if all(ended):
                break
    if not drawn:
        raise UserError(f"max_tokens is {max_tokens}; a completion has at least 1 token.")
    tokens, thought = mx.stack(drawn, axis=1), mx.stack(logprobs, axis=1)
    mx.eval(tokens, thought)
    return [
        Completion(prompt.tokens, tokens[i, :n], ended[i], thought[i, :n], prompt.about)
        for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))
    ]


def mean_reward(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    score: Score,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    stop_tokens: Sequence[int] = (),
    batch_size: int = 32,
    seed: int = 0,
) -> float:
    """The mean reward of one completion of each prompt, greedy by default: the score on held-out prompts."""
    keys, rewards = Keys(seed), []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        rewards.append(rewards_of(score, sample(model, part, max_tokens, temperature, stop_tokens, keys)))
    return float(np.concatenate(rewards).mean())


def _number(value: Any) -> float:
    if isinstance(value, mx.array):
        value = value.astype(mx.float32)  # numpy has no bfloat16
    return float(np.asarray(value).reshape(()))


def _of_one(reward: Callable[..., Any], completion: Completion, *arguments: Any) -> Any:
    try:
        return reward(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The reward function raised {type(error).__name__}: {error}, for the completion "
            f"{completion.tokens.tolist()}."
        ) from error
