"""Examples of JSONL files on their way to batches: rows, texts or messages to tokens, and a seeded, resumable order."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from lmxlab.data.textfiles import read_text
from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import UserError

SIDES = ("left", "right")
PAD_MULTIPLE = 32  # lengths that batches are padded to: each new one is compiled again


def read_rows(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place in words for messages; blank lines are skipped.

    Raises:
        UserError: naming a line that is no JSON object.
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
    return rows


def check_fields(place: str, row: Any, fields: Sequence[str]) -> None:
    """UserError unless the row has the fields, all of them texts or all of them lists of messages, none empty."""
    if not isinstance(row, dict):
        example = ", ".join(f'"{name}": ...' for name in fields)
        raise UserError(f"{place} is not a JSON object: write {{{example}}}.")
    for name in fields:
        if name not in row:
            raise UserError(f"{place} has no field {name!r}; its fields are {sorted(row)}.")
        if not isinstance(row[name], str | list):
            raise UserError(f"{place}: {name} is a {type(row[name]).__name__}; give a text or a list of messages.")
        if not row[name] or isinstance(row[name], str) and not row[name].strip():
            raise UserError(f"{place}: {name} is empty.")
    if len({type(row[name]) for name in fields}) > 1:
        raise UserError(f"{place} mixes texts and lists of messages: give all fields in one form.")


def ends_of_completion(tokenizer: Tokenizer) -> list[int]:
    """The token that ends a completion, in a list: the tokenizer's EOS, else its `bos_id`; [] when it has neither."""
    candidates = (getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "bos_id", None))
    return [token for token in candidates if token is not None][:1]


def encode_continuations(
    place: str, prompt: Any, completions: Sequence[Any], tokenizer: Tokenizer, end_id: int | None
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and of what may follow it, all texts or all lists of messages {"role", "content"}.

    Prompt and completion are encoded apart, so that the prompt has the tokens that it has when the model is asked to
    continue it. The tokenizer's `bos_id`, if it has one, begins plain prompts, and plain completions end with `end_id`,
    else with the tokenizer's EOS, else with its `bos_id`. Messages become text by the tokenizer's chat template.

    Raises:
        UserError: messages that are none or have no template, or a template that writes the prompt in two ways.
    """
    bos = getattr(tokenizer, "bos_id", None)
    if isinstance(prompt, str):
        ends = ends_of_completion(tokenizer) if end_id is None else [end_id]
        begin = [] if bos is None else [bos]
        return begin + tokenizer.encode(prompt), [[*tokenizer.encode(text), *ends] for text in completions]
    start = _templated(place, prompt, tokenizer, open_turn=True)
    encoded = []
    for messages in completions:
        text = _templated(place, prompt + messages, tokenizer, open_turn=False)
        if not text.startswith(start):
            raise UserError(
                f"{place}: the chat template writes the prompt in another way when a completion follows it, so that "
                "the completion's tokens are not known: give plain texts."
            )
        encoded.append(tokenizer.encode(text[len(start) :]))
    return tokenizer.encode(start), encoded


def cut(
    prompt: list[int], completions: Sequence[list[int]], max_tokens: int, side: str
) -> tuple[list[int], list[list[int]]]:
    """Prompt and completions so that none of them together has more than max_tokens, with one prompt for all.

    "left" takes from the start of the prompt, then from the end of completions; "right" from the end of completions,
    then of the prompt.
    """
    longest = max(map(len, completions))
    room = max_tokens - longest if side == "left" else max_tokens
    if len(prompt) > room:
        keep = max(room, 1)  # the first token of a row cannot be scored
        prompt = prompt[-keep:] if side == "left" else prompt[:keep]
    rest = max_tokens - len(prompt)
    return prompt, [completion[:rest] for completion in completions]


def check_cut(max_tokens: int, side: str) -> None:
    """UserError for lengths and sides that `cut` cannot serve."""
    if side not in SIDES:
        raise UserError(f"truncate is {side!r}; it must be one of {', '.join(SIDES)}.")
    if max_tokens < 2:
        raise UserError(f"max_tokens is {max_tokens}; a prompt and a completion take at least 2.")


class ExampleBatches(ABC):
    """Endless batches of N examples in a seeded order that can be resumed anywhere.

    A batch that an epoch does not fill is filled from the next. Subclasses say what a batch is.

    Args:
        tokens: of all examples, by which a saved place knows that it is theirs.
    """

    def __init__(self, n_examples: int, tokens: Sequence[int], batch_size: int, seed: int = 0):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1.")
        self.n_examples, self.batch_size, self.seed = n_examples, batch_size, seed
        self._digest = hashlib.sha256(np.array(tokens, np.int32).tobytes()).hexdigest()[:16]
        self._begin(epoch=0)

    @abstractmethod
    def batch(self, which: np.ndarray) -> tuple[mx.array, ...]:
        """The arrays of the examples with these numbers."""

    def _begin(self, epoch: int) -> None:
        self.epoch = epoch
        self._position = 0
        self._order = np.random.default_rng([self.seed, epoch]).permutation(self.n_examples)

    def __iter__(self) -> "ExampleBatches":
        return self

    def __next__(self) -> tuple[mx.array, ...]:
        which = self._take(self.batch_size)
        while which.size < self.batch_size:
            self._begin(self.epoch + 1)
            which = np.concatenate([which, self._take(self.batch_size - which.size)])
        return self.batch(which)

    def in_order(self) -> Iterator[tuple[mx.array, ...]]:
        """One pass over all examples as they come, for evaluation; the last batch may be smaller."""
        for start in range(0, self.n_examples, self.batch_size):
            yield self.batch(np.arange(start, min(start + self.batch_size, self.n_examples)))

    def state_dict(self) -> dict[str, Any]:
        """Where the iterator stands, as plain JSON values."""
        return {"epoch": self.epoch, "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. Raises UserError if that was over other examples or with another seed."""
        differs = [f"{k} {state.get(k)} (here {v})" for k, v in self._identity().items() if state.get(k) != v]
        if differs:
            raise UserError(f"the saved position is of other batches: {', '.join(differs)}; resume with the same data.")
        self._begin(int(state["epoch"]))
        self._position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "examples": self.n_examples, "digest": self._digest}

    def _take(self, n: int) -> np.ndarray:
        taken = self._order[self._position : self._position + n]
        self._position += taken.size
        return taken


def padded_length(longest: int, most: int) -> int:
    """The next multiple of PAD_MULTIPLE, but no more than `most`: the longest example may be as long as the context."""
    return min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, most)


def _templated(place: str, messages: list[Any], tokenizer: Any, open_turn: bool) -> str:
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f'{place}: a message is {message!r}; write {{"role": "user", "content": "..."}}.')
        if not message["content"].strip():
            raise UserError(f"{place}: the content of a message of {message['role']!r} is empty.")
    if not hasattr(tokenizer, "apply_chat_template"):
        raise UserError(f"{place} has messages, but the tokenizer has no chat template: give plain texts.")
    try:
        text: str = tokenizer.apply_chat_template(messages, open_turn)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    return text
