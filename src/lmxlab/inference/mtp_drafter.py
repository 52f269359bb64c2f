"""Multi-token prediction heads as drafter: the target drafts for itself, from states that it has computed anyway."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lmxlab.core.mtp import MTPHead
from lmxlab.errors import UserError
from lmxlab.inference.drafters import Draft
from lmxlab.inference.rollback import Mark
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.models.mtp import mtp_logits
from lmxlab.models.sampling import Keys, Sampler


class MTPDrafter:
    """Drafts as many tokens as there are heads, each head one, as DeepSeek-V3 does (2412.19437, section 5.4.3).

    Head k (from 0) at position i reads the state below it and the embedding of token i + k + 1. Of a text of L tokens
    it can therefore keep what it read up to position L - 2 - k; the k positions after that hang on drafted tokens, and
    are taken back at once.

    Args:
        model: the target.
        heads: trained with it, in their order.
    """

    def __init__(self, model: LanguageModel, heads: Sequence[MTPHead]):
        if not heads:
            raise UserError("There are no MTP heads to draft with: give at least one")
        self.vocab_size = model.config.vocab_size
        self._model = model
        self._heads = list(heads)
        self._caches: list[Any] = [head.make_cache() for head in heads]
        self._text: list[int] = []
        self._kept = [0 for _ in heads]  # positions that each head has read for good
        # States below each head at positions that it may not keep yet: they hang on tokens that were only drafted.
        self._waiting: list[mx.array | None] = [None for _ in heads]

    def draft(self, new: list[int], hidden: mx.array | None, n_tokens: int, sampler: Sampler, keys: Keys) -> Draft:
        self._text += new
        if hidden is None:  # a text of one token has no state yet
            return Draft(mx.zeros((1, 0), mx.int32), None)
        below, n_final = hidden, hidden.shape[1]  # states below the head; the first n_final will never change
        tokens: list[mx.array] = []
        probabilities: list[mx.array] = []
        for k, (head, cache) in enumerate(zip(self._heads, self._caches, strict=True)):
            waiting = self._waiting[k]
            if waiting is not None:
                below, n_final = mx.concatenate([waiting, below], axis=1), n_final + waiting.shape[1]
            start = self._kept[k]
            n_kept = max(0, len(self._text) - 1 - k - start)
            self._kept[k] = start + n_kept
            self._waiting[k] = below[:, n_kept:n_final] if n_final > n_kept else None
            states = below[:, :0]
            with evaluating(head):
                if n_kept:
                    states = head(below[:, :n_kept], self._embed(start + k + 1, n_kept, tokens), cache=cache)
                if k < n_tokens:
                    rest = below[:, n_kept:]
                    if n_rest := rest.shape[1]:
                        mark = Mark([cache])
                        embedded = self._embed(start + n_kept + k + 1, n_rest, tokens)
                        states = mx.concatenate([states, head(rest, embedded, cache=cache)], axis=1)
                        mark.rewind(n_rest, 0)
                    logits = mtp_logits(self._model, states[:, -1])
                    tokens.append(sampler(logits, key=keys())[:, None])
                    probabilities.append(sampler.probabilities(logits))
            below, n_final = states, n_kept
        return Draft(mx.concatenate(tokens, axis=1), mx.concatenate(probabilities))

    def _embed(self, start: int, n: int, drafted: Sequence[mx.array]) -> mx.array:
        """Embeddings of n tokens from place `start` of the text and what was drafted after it, (1, n, d_model)."""
        length = len(self._text)
        known = self._text[start : min(start + n, length)]
        parts = [mx.array([known], mx.int32)] if known else []
        parts += [drafted[place - length].astype(mx.int32) for place in range(max(start, length), start + n)]
        embedded: mx.array = self._model.embed(mx.concatenate(parts, axis=1))
        return embedded
