"""Who proposes the tokens that speculative decoding verifies: a small model, or the text itself."""

from typing import NamedTuple, Protocol

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.rollback import Mark
from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import prefill
from lmxlab.models.sampling import Keys, Sampler


class Draft(NamedTuple):
    """Proposed tokens (1, n), and the distribution that each was drawn from, (n, V).

    None as the distribution means that they were not drawn: the drafter is sure of each.
    """

    tokens: mx.array
    probabilities: mx.array | None


class Drafter(Protocol):
    """Proposes what comes next; it takes back by itself what it read of tokens that were not accepted."""

    vocab_size: int

    def draft(self, new: list[int], hidden: mx.array | None, n_tokens: int, sampler: Sampler, keys: Keys) -> Draft:
        """Up to `n_tokens` tokens to follow the text.

        Args:
            new: the tokens of the text since the last call; at the first call the prompt.
            hidden: the target's hidden states for the text up to its last token, as far as they are new, (1, m, d).
            n_tokens: at least 1.
            sampler: the target's. Decoding is lossless for any other, too, but fewer tokens are then accepted.
        """


class ModelDrafter:
    """A smaller model with the same vocabulary, with its own cache."""

    def __init__(self, model: LanguageModel):
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._cache = model.make_cache()
        self._mark = Mark(self._cache)
        self._read: mx.array | None = None  # what the cache has read of the last proposal, (1, n - 1)

    def draft(self, new: list[int], hidden: mx.array | None, n_tokens: int, sampler: Sampler, keys: Keys) -> Draft:
        known = 0
        if self._read is not None:  # what was accepted of it is how `new` begins
            n_read = self._read.shape[1]
            known = self._mark.rewind(n_read, min(n_read, len(new) - 1))
        x = prefill(self._model, mx.array([new[known:]]), self._cache)
        tokens, probabilities = [], []
        for i in range(n_tokens):
            states, _ = self._model.hidden_states(x, self._cache)
            if i == 0:
                self._mark = Mark(self._cache)
            logits = self._model.logits(states[:, -1])
            x = sampler(logits, key=keys())[:, None]
            tokens.append(x)
            probabilities.append(sampler.probabilities(logits))
        drafted = mx.concatenate(tokens, axis=1)
        self._read = drafted[:, :-1]
        return Draft(drafted, mx.concatenate(probabilities))


class PromptLookupDrafter:
    """What followed the last time that the text had its last few tokens: good where a text repeats its prompt.

    Costs no model. The idea is that of prompt lookup decoding (Saxena 2023, in `transformers` as
    `prompt_lookup_num_tokens`).

    Args:
        vocab_size: the target's.
        longest: how many last tokens to look for; fewer and fewer, down to one, if they are not found.
    """

    def __init__(self, vocab_size: int, longest: int = 3):
        if longest < 1:
            raise UserError(f"longest is {longest}; at least 1 token must be looked for")
        self.vocab_size = vocab_size
        self._longest = longest
        self._text: list[int] = []

    def draft(self, new: list[int], hidden: mx.array | None, n_tokens: int, sampler: Sampler, keys: Keys) -> Draft:
        self._text += new
        return Draft(mx.array([self._followers(n_tokens)], mx.int32).reshape(1, -1), None)

    def _followers(self, n_tokens: int) -> list[int]:
        text = self._text
        for length in range(min(self._longest, len(text) - 1), 0, -1):
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == text[-length:]:
                    return text[start + length : start + length + n_tokens]
        return []
