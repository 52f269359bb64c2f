"""Preference data: a prompt, a completion that was chosen and one that was rejected; from JSONL lines to batches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from lmxlab.data.textfiles import read_text
from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import UserError

FIELDS = ("prompt", "chosen", "rejected")
SIDES = ("left", "right")
PAD_MULTIPLE = 32  # lengths that batches are padded to: each new one is compiled again


class Pair(NamedTuple):
    """Token ids; the completions end with the token that ends a text, where the tokenizer has one."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Preferences:
    """Pairs that are ready for training.

    Attributes:
        pairs: at least one.
        truncated: how many pairs lost tokens because they were too long.
        dropped: how many were left out because nothing to tell them apart was left of them.
        reference: log-probabilities of the chosen and the rejected completions under a reference, (2, N) float32, which
            `lmxlab.training.dpo.with_reference` adds.
    """

    pairs: list[Pair] = field(repr=False)
    truncated: int = 0
    dropped: int = 0
    reference: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UserError("There are no preference pairs: give at least one line, and room for its completions.")
        if self.reference is not None and self.reference.shape != (2, len(self.pairs)):
            raise UserError(f"The reference is {self.reference.shape}; it must be (2, {len(self.pairs)}).")

    def split(self, n_first: int) -> tuple["Preferences", "Preferences"]:
        """The first pairs, and the others: for training and for evaluation."""
        parts = slice(None, n_first), slice(n_first, None)
        cut = [(self.pairs[part], None if self.reference is None else self.reference[:, part]) for part in parts]
        first, second = (Preferences(pairs, reference=reference) for pairs, reference in cut)
        return first, second

    def in_order(self, batch_size: int) -> Iterator[tuple[mx.array, ...]]:
        """One pass over all pairs as they come, for evaluation, in the batches of `PreferenceBatches`."""
        return PreferenceBatches(self, batch_size).in_order()


def load_preferences(
    path: str | Path, tokenizer: Tokenizer, max_tokens: int = 512, truncate: str = "left", end_id: int | None = None
) -> Preferences:
    """The pairs of a JSONL file, one object with `prompt`, `chosen` and `rejected` per line.

    Each is a text, or a list of messages {"role": ..., "content": ...}, which the tokenizer's chat template turns into
    text. Blank lines are skipped, further fields ignored. Prompt and completion are encoded apart, so that the prompt
    has the tokens that it has when the model is asked to continue it.

    Args:
        tokenizer: its `bos_id`, if it has one, begins plain prompts. Templates write their own.
        max_tokens: longest sequence of prompt and completion.
        truncate: where too long ones lose tokens: "left", the start of the prompt (of both rows of a pair alike), then
            the end of the completion; "right", the end of the completion, then of the prompt. Pairs without a token to
            score, or whose completions are equal then, are dropped. Both are counted.
        end_id: ends each completion of plain text; by default the tokenizer's EOS, or its `bos_id`.

    Raises:
        UserError: naming the line with a missing or empty field, equal completions, or messages without a template.
    """
    rows = []
    for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place} is not JSON ({error.msg}): mend or remove that line.") from error
            rows.append((place, row))
    return _preferences(rows, tokenizer, max_tokens, truncate, end_id)


def make_preferences(
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    max_tokens: int = 512,
    truncate: str = "left",
    end_id: int | None = None,
) -> Preferences:
    """As `load_preferences`, from the objects themselves."""
    places = [(f"row {i}", row) for i, row in enumerate(rows)]
    return _preferences(places, tokenizer, max_tokens, truncate, end_id)


class PreferenceBatches:
    """Endless batches in a seeded order that can be resumed anywhere; the arrays that the objective `DPO` takes.

    chosen and rejected (B, T) int32 with zeros on the right, chosen_mask and rejected_mask (B, T) float32, 1 for the
    tokens of completions, and with a reference its log-probabilities of both, (B,) float32. T is a multiple of 32. A
    batch that an epoch does not fill is filled from the next.
    """

    def __init__(self, preferences: Preferences, batch_size: int, seed: int = 0):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1.")
        self.preferences = preferences
        self.batch_size = batch_size
        self.seed = seed
        tokens = [token for pair in preferences.pairs for part in pair for token in (*part, -1)]
        self._digest = hashlib.sha256(np.array(tokens, np.int32).tobytes()).hexdigest()[:16]
        self._begin(epoch=0)

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        self._order = np.random.default_rng([self.seed, epoch]).permutation(len(self.preferences.pairs))

    def __iter__(self) -> "PreferenceBatches":
        return self

    def __next__(self) -> tuple[mx.array, ...]:
        chosen = self._take(self.batch_size)
        while chosen.size < self.batch_size:
            self._begin(self.epoch + 1)
            chosen = np.concatenate([chosen, self._take(self.batch_size - chosen.size)])
        return self._batch(chosen)

    def in_order(self) -> Iterator[tuple[mx.array, ...]]:
        """One pass over all pairs as they come, for evaluation; the last batch may be smaller."""
        n = len(self.preferences.pairs)
        for start in range(0, n, self.batch_size):
            yield self._batch(np.arange(start, min(start + self.batch_size, n)))

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. Raises UserError if that was over other pairs or with another seed."""
        differs = [f"{k} {state.get(k)} (here {v})" for k, v in self._identity().items() if state.get(k) != v]
        if differs:
            raise UserError(f"the saved position is of other batches: {', '.join(differs)}; resume with the same data.")
        self._begin(int(state["epoch"]))
        self._position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "pairs": len(self.preferences.pairs), "digest": self._digest}

    def _take(self, n: int) -> np.ndarray:
        taken = self._order[self._position : self._position + n]
        self._position += taken.size
        return taken

    def _batch(self, which: np.ndarray) -> tuple[mx.array, ...]:
        pairs = [self.preferences.pairs[i] for i in which]
        longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
        tokens = np.zeros((2, len(pairs), -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE), np.int32)
        masks = np.zeros(tokens.shape, np.float32)
        for i, pair in enumerate(pairs):
            start = len(pair.prompt)
            for side, completion in enumerate((pair.chosen, pair.rejected)):
                end = start + len(completion)
                tokens[side, i, :end] = pair.prompt + completion
                masks[side, i, start:end] = 1
        reference = self.preferences.reference
        scored = () if reference is None else tuple(mx.array(side[which]) for side in reference)
        return mx.array(tokens[0]), mx.array(tokens[1]), mx.array(masks[0]), mx.array(masks[1]), *scored


def _preferences(
    rows: list[tuple[str, Any]], tokenizer: Tokenizer, max_tokens: int, truncate: str, end_id: int | None
) -> Preferences:
    if truncate not in SIDES:
        raise UserError(f"truncate is {truncate!r}; it must be one of {', '.join(SIDES)}.")
    if max_tokens < 2:
        raise UserError(f"max_tokens is {max_tokens}; a prompt and a completion take at least 2.")
    pairs, truncated, dropped = [], 0, 0
    for place, row in rows:
        whole = _encode(place, row, tokenizer, end_id)
        pair = _cut(whole, max_tokens, truncate)
        truncated += pair != whole
        if pair.chosen == pair.rejected or not (pair.prompt and pair.chosen and pair.rejected):
            dropped += 1
        else:
            pairs.append(pair)
    return Preferences(pairs, truncated, dropped)


def _encode(place: str, row: Any, tokenizer: Tokenizer, end_id: int | None) -> Pair:
    if not isinstance(row, dict):
        raise UserError(f'{place} is not a JSON object: write {{"prompt": ..., "chosen": ..., "rejected": ...}}.')
    for name in FIELDS:
        if name not in row:
            raise UserError(f"{place} has no field {name!r}; its fields are {sorted(row)}.")
        if not isinstance(row[name], str | list):
            raise UserError(f"{place}: {name} is a {type(row[name]).__name__}; give a text or a list of messages.")
        if not row[name] or isinstance(row[name], str) and not row[name].strip():
            raise UserError(f"{place}: {name} is empty.")
    if row["chosen"] == row["rejected"]:
        raise UserError(f"{place}: chosen and rejected are equal, so that nothing is preferred: remove that line.")
    kinds = {type(row[name]) for name in FIELDS}
    if len(kinds) > 1:
        raise UserError(f"{place} mixes texts and lists of messages: give all three fields in one form.")
    bos = getattr(tokenizer, "bos_id", None)
    if kinds == {str}:
        candidates = (end_id, getattr(tokenizer, "eos_token_id", None), bos)
        ends = [token for token in candidates if token is not None][:1]
        begin = [] if bos is None else [bos]
        chosen, rejected = ([*tokenizer.encode(row[name]), *ends] for name in ("chosen", "rejected"))
        return Pair(begin + tokenizer.encode(row["prompt"]), chosen, rejected)
    prompt = _templated(place, row["prompt"], tokenizer, open_turn=True)
    completions = []
    for name in ("chosen", "rejected"):
        text = _templated(place, row["prompt"] + row[name], tokenizer, open_turn=False)
        if not text.startswith(prompt):
            raise UserError(
                f"{place}: the chat template writes the prompt in another way when {name} follows it, so that the "
                "completion's tokens are not known: give plain texts."
            )
        completions.append(tokenizer.encode(text[len(prompt) :]))
    return Pair(tokenizer.encode(prompt), *completions)


def _templated(place: str, messages: list[Any], tokenizer: Any, open_turn: bool) -> str:
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f'{place}: a message is {message!r}; write {{"role": "user", "content": "..."}}.')
        if not message["content"].strip():
            raise UserError(f"{place}: the content of a message of {message['role']!r} is empty.")
    if not hasattr(tokenizer, "apply_chat_template"):
        raise UserError(f"{place} has messages, but the tokenizer has no chat template: give plain texts.")
    try:
        return tokenizer.apply_chat_template(messages, open_turn)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def _cut(pair: Pair, max_tokens: int, truncate: str) -> Pair:
    longest = max(len(pair.chosen), len(pair.rejected))
    room = max_tokens - longest if truncate == "left" else max_tokens
    prompt = pair.prompt
    if len(prompt) > room:
        # Both rows keep the same prompt, of which at least one token: the first of a row cannot be scored.
        keep = max(room, 1)
        prompt = prompt[-keep:] if truncate == "left" else prompt[:keep]
    rest = max_tokens - len(prompt)
    return Pair(prompt, pair.chosen[:rest], pair.rejected[:rest])
