"""Datasets as sequences or streams of `(x, y)` windows, y being x one token later."""

from collections.abc import Iterator
from itertools import chain, islice

import mlx.core as mx

from lmxlab.data.tokenizer import Tokenizer
from lmxlab.errors import MissingExtraError, UserError


class TokenDataset:
    """Overlapping windows of a token array: item i is `tokens[i : i + seq_len]` and the same one later.

    Args:
        tokens: `(N,)` integers.
        seq_len: tokens per window.

    >>> x, y = TokenDataset(mx.arange(10), seq_len=4)[2]
    >>> x.tolist(), y.tolist()
    ([2, 3, 4, 5], [3, 4, 5, 6])
    """

    def __init__(self, tokens: mx.array, seq_len: int = 128):
        if seq_len < 1:
            raise UserError(f"seq_len is {seq_len}: a window holds at least 1 token.")
        self.tokens = tokens
        self.seq_len = seq_len

    def __len__(self) -> int:
        return max(0, len(self.tokens) - self.seq_len)

    def __getitem__(self, idx: int) -> tuple[mx.array, mx.array]:
        if not -len(self) <= idx < len(self):
            raise IndexError(f"window {idx} of {len(self)}")
        start = idx % len(self)
        window = self.tokens[start : start + self.seq_len + 1]
        return window[:-1], window[1:]


class TextDataset(TokenDataset):
    """Overlapping windows of a text, tokenized at once."""

    def __init__(self, text: str, tokenizer: Tokenizer, seq_len: int = 128):
        super().__init__(mx.array(tokenizer.encode(text), dtype=mx.int32), seq_len)
        self.tokenizer = tokenizer


class HFDataset:
    """A dataset of the Hugging Face hub (or a local one that `datasets` can load), as a stream of tokens.

    Documents begin with the tokenizer's `bos_id` where it has one; blank rows are skipped.

    Args:
        name: as for `datasets.load_dataset`.
        tokenizer: encodes the text of each row.
        seq_len: tokens per window.
        split: which split to read.
        text_field: the column that holds the text.
        config_name: the dataset's configuration, if it has several.
        streaming: read rows as they are needed instead of downloading all of them first.

    Raises:
        ImportError: datasets is not installed.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        seq_len: int = 128,
        split: str = "train",
        text_field: str = "text",
        config_name: str | None = None,
        streaming: bool = False,
    ):
        try:
            import datasets
        except ImportError as error:
            raise MissingExtraError("HFDataset needs datasets: pip install 'lmxlab[hf]'") from error
        self.name = name
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.text_field = text_field
        self.dataset = datasets.load_dataset(name, config_name, split=split, streaming=streaming)

    def token_iterator(self) -> Iterator[int]:
        """One pass over the tokens of all rows.

        Raises:
            UserError: a row without the text field.
        """
        bos = getattr(self.tokenizer, "bos_id", None)
        start = [bos] if isinstance(bos, int) else []
        for row in self.dataset:
            if self.text_field not in row:
                raise UserError(f"{self.name} has no field {self.text_field!r}; it has {sorted(row)}: set text_field.")
            text = row[self.text_field]
            if text and text.strip():
                yield from chain(start, self.tokenizer.encode(text))

    def batch_iterator(
        self, batch_size: int = 8, max_batches: int | None = None
    ) -> Iterator[tuple[mx.array, mx.array]]:
        """Full batches `(x, y)` of shape `(batch_size, seq_len)`, in order, every token a target once."""
        stream = self.token_iterator()
        need = batch_size * self.seq_len
        buffer = list(islice(stream, 1))
        n_batches = 0
        while max_batches is None or n_batches < max_batches:
            buffer += islice(stream, need)
            if len(buffer) <= need:
                return
            window = mx.array(buffer, dtype=mx.int32)
            shape = (batch_size, self.seq_len)
            yield window[:-1].reshape(shape), window[1:].reshape(shape)
            buffer = buffer[-1:]  # the last target is the next input
            n_batches += 1
