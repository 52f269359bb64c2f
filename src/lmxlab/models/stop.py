"""The text of one row as its tokens come, and where a stop string ends it, though it lie across tokens."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lmxlab.errors import UserError

MOST_BYTES = 4  # of a character in UTF-8
INCOMPLETE = "\ufffd"  # what decoding makes of bytes that are no character yet


class Decodes(Protocol):
    """What is needed of a tokenizer here: ids back to text."""

    def decode(self, tokens: list[int]) -> str: ...


class Released(NamedTuple):
    """What no stop string can reach any more."""

    tokens: list[int]
    text: str


class TextWatch:
    """Turns tokens into text piece by piece, and ends the text before the first stop string.

    What may be the beginning of a stop string is held back until more tokens decide. A token counts as kept if all of
    its text lies before the stop string. Ids beyond the tokenizer's vocabulary (one that was rounded up) have no text.

    Args:
        tokenizer: its `decode` may depend on the tokens before, so it is given some of them.
        prompt: the tokens before; their text is neither searched nor released.
        stop: the strings; none at all makes this a plain detokenizer.

    >>> class Letters:
    ...     def decode(self, tokens): return "".join(map(chr, tokens))
    >>> watch = TextWatch(Letters(), [], ["END"])
    >>> [watch.push(ord(letter)).text for letter in "An END."], watch.ended
    (['A', 'n', ' ', '', '', '', ''], True)
    """

    def __init__(self, tokenizer: Decodes, prompt: Sequence[int], stop: Sequence[str] = ()):
        self.ended = False
        self._stop = list(stop)
        self._tokenizer = tokenizer
        self._known = getattr(tokenizer, "vocab_size", None)
        # Decoding starts at the piece before the last one, so that its cost does not grow with the text.
        self._tokens = [token for token in prompt if self._has_text(token)]
        self._start, self._end = 0, len(self._tokens)
        self._text = ""  # held back
        self._released = 0  # characters
        self._open: list[int] = []  # tokens that are no whole character yet
        self._whole = self._waited = 0
        self._held: list[tuple[int, int]] = []  # tokens held back, and where the text of each ends

    def push(self, token: int) -> Released:
        """Takes the next token; after a stop string, `ended` is true and nothing more is released."""
        if self.ended:
            return Released([], "")
        self._open.append(token)
        if self._has_text(token):
            self._tokens.append(token)
        before = self._tokenizer.decode(self._tokens[self._start : self._end])
        now = self._tokenizer.decode(self._tokens[self._start :])
        whole = len(now.rstrip(INCOMPLETE)) - len(before)
        self._waited = 1 if whole > self._whole else self._waited + 1  # tokens since the last whole character
        self._whole = whole
        if now.endswith(INCOMPLETE) and self._waited < MOST_BYTES:
            return Released([], "")
        self._whole = self._waited = 0
        self._start, self._end = self._end, len(self._tokens)
        return self._read(now[len(before) :])

    def finish(self) -> Released:
        """What was held back, when no more tokens come."""
        if self.ended:
            return Released([], "")
        if self._open:
            before = self._tokenizer.decode(self._tokens[self._start : self._end])
            released = self._read(self._tokenizer.decode(self._tokens[self._start :])[len(before) :])
            rest = self._release(len(self._text))
            return Released(released.tokens + rest.tokens, released.text + rest.text)
        return self._release(len(self._text))

    def _read(self, piece: str) -> Released:
        self._text += piece
        self._held += [(token, self._released + len(self._text)) for token in self._open]
        self._open = []
        found = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
        if found:
            released = self._release(min(found))
            self.ended = True
            return released
        return self._release(len(self._text) - max((_begun(self._text, stop) for stop in self._stop), default=0))

    def _release(self, length: int) -> Released:
        text, self._text = self._text[:length], self._text[length:]
        self._released += length
        kept = [token for token, end in self._held if end <= self._released]
        self._held = self._held[len(kept) :]
        return Released(kept, text)

    def _has_text(self, token: int) -> bool:
        return self._known is None or token < self._known


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def check_stop_strings(stop: Sequence[str] | None, tokenizer: Decodes | None) -> list[str]:
    """The stop strings as a list; UserError for an empty one, and for any without the tokenizer to find them with."""
    if isinstance(stop, str):
        raise UserError(f"stop_strings is the text {stop!r}; give a list of strings: [{stop!r}]")
    if stop and tokenizer is None:
        raise UserError("stop_strings are found in the text, so generate needs tokenizer= to decode it")
    if any(not text for text in stop or ()):
        raise UserError("A stop string is empty: every text contains it; leave it out")
    return list(stop or ())
