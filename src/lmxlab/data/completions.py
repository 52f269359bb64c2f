"""Examples of a prompt and the completion to learn (supervised fine-tuning); from JSONL lines to batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from lmxlab.data.examples import (
    ExampleBatches,
    check_cut,
    check_fields,
    cut,
    encode_continuations,
    padded_length,
    read_rows,
)
from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import UserError

FIELDS = ("prompt", "completion")


class Example(NamedTuple):
    """Token ids; the completion ends with the token that ends a text, where the tokenizer has one."""

    prompt: list[int]
    completion: list[int]


@dataclass(frozen=True)
class Completions:
    """Examples that are ready for training, at least one; how many lost tokens, and how many had no room at all."""

    examples: list[Example] = field(repr=False)
    truncated: int = 0
    dropped: int = 0


def load_completions(
    path: str | Path, tokenizer: Tokenizer, max_tokens: int = 512, truncate: str = "left", end_id: int | None = None
) -> Completions:
    """The examples of a JSONL file, one object with `prompt` and `completion` per line, further fields ignored.

    Args:
        tokenizer: see `examples.encode_continuations`, which also tells of messages and `end_id`.
        max_tokens: longest sequence of prompt and completion.
        truncate: the side where too long ones lose tokens: see `examples.cut`. Examples without a token to score then
            are dropped.

    Raises:
        UserError: naming the line with a missing or empty field, or messages without a template; no example at all.
    """
    check_cut(max_tokens, truncate)
    examples, truncated, dropped = [], 0, 0
    for place, row in read_rows(path):
        check_fields(place, row, FIELDS)
        whole = encode_continuations(place, row["prompt"], [row["completion"]], tokenizer, end_id)
        prompt, (completion,) = cut(*whole, max_tokens, truncate)
        truncated += (prompt, [completion]) != whole
        if prompt and completion:
            examples.append(Example(prompt, completion))
        else:
            dropped += 1
    if not examples:
        raise UserError(f"{path} has no example: give at least one line, and room for its completion.")
    return Completions(examples, truncated, dropped)


class CompletionBatches(ExampleBatches):
    """Batches (x, y) for the objective `next_token`: (B, T) int32, y -100 where a prompt or padding is next.

    T is a multiple of 32, or that of the longest example.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int = 0):
        self.examples = examples
        tokens = [token for example in examples for part in example for token in (*part, -1)]
        self._most = max(len(example.prompt) + len(example.completion) for example in examples) - 1
        super().__init__(len(examples), tokens, batch_size, seed)

    def batch(self, which: np.ndarray) -> tuple[mx.array, mx.array]:
        chosen = [self.examples[i] for i in which]
        longest = max(len(example.prompt) + len(example.completion) for example in chosen)
        x = np.zeros((len(chosen), padded_length(longest - 1, self._most)), np.int32)
        y = np.full(x.shape, -100, np.int32)
        for row, (prompt, completion) in enumerate(chosen):
            whole = prompt + completion
            x[row, : len(whole) - 1] = whole[:-1]
            y[row, len(prompt) - 1 : len(whole) - 1] = completion
        return mx.array(x), mx.array(y)
