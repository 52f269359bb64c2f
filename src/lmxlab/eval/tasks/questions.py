"""Questions made by rule from the plays of Shakespeare that training never sees: lm-eval tasks without a network.

The YAML files beside this one are tasks of lm-eval, so other programs can ask the same questions with
`lm_eval --include_path FOLDER`. Which plays are held out is what `DataConfig()` says; a model that was trained with
another split has seen some of them.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from lmxlab.data.config import DataConfig
from lmxlab.data.sources import resolve
from lmxlab.data.split import Split

MOST_QUESTIONS = 500
CONTEXT_CHARS = 240
PASSAGE_CHARS = 2000

# Subject and verb as Shakespeare has them, and a verb that the subject cannot have.
AGREEMENT = {
    "I am": "is",
    "I have": "hath",
    "thou art": "am",
    "thou hast": "have",
    "he is": "are",
    "he hath": "hast",
    "she is": "are",
    "it is": "are",
    "we are": "is",
    "you are": "is",
    "they are": "is",
}


def held_out_plays() -> list[str]:
    config = DataConfig(dataset="shakespeare")
    return Split(resolve(config).read(), config.val_fraction, config.seed).val


def agreement(**_: Any) -> dict[str, Any]:
    """After a subject, the verb as written against one that does not agree, with the rest of the line."""
    pattern = re.compile(rf"\b({'|'.join(AGREEMENT)})\b")

    def questions(play: str, _: random.Random) -> Iterator[dict[str, Any]]:
        for context, line in _lines(play):
            if match := pattern.search(line):
                subject, verb = match[1].split()
                before, rest = context + line[: match.start()] + subject, line[match.end() :]
                choices = [f" {verb}{rest}", f" {AGREEMENT[match[1]]}{rest}"]
                yield {"context": before, "choices": choices, "answer": 0}

    return _dataset(questions)


def word_order(**_: Any) -> dict[str, Any]:
    """A line as written against the same line with two neighbouring words exchanged."""

    def questions(play: str, rng: random.Random) -> Iterator[dict[str, Any]]:
        for context, line in _lines(play):
            words = line.split(" ")
            at = rng.randrange(len(words) - 1)
            first, second = words[at : at + 2]
            # Words only: a comma in the wrong place would give the answer away.
            if len(words) < 5 or not (first + second).isalpha() or first.lower() == second.lower() or at == 0:
                continue
            swapped = " ".join([*words[:at], second, first, *words[at + 2 :]])
            yield {"context": context, "choices": [line, swapped], "answer": 0}

    return _dataset(questions)


def cloze(**_: Any) -> dict[str, Any]:
    """The last word of a line against three other words as long and about as common."""
    plays = held_out_plays()
    counts = Counter(re.findall(r"[a-z]{4,}", " ".join(plays)))
    similar: dict[tuple[int, int], list[str]] = {}
    for word, n in sorted(counts.items()):
        similar.setdefault((len(word), n.bit_length()), []).append(word)

    def questions(play: str, rng: random.Random) -> Iterator[dict[str, Any]]:
        for context, line in _lines(play):
            match = re.search(r" ([a-z]{4,})[.,;:!?]?$", line)
            others = similar[len(match[1]), counts[match[1]].bit_length()] if match else []
            if match and len(others) > 3:
                wrong = rng.sample([word for word in others if word != match[1]], 3)
                answer = rng.randrange(4)
                choices = [*wrong[:answer], match[1], *wrong[answer:]]
                yield {
                    "context": context + line[: match.start()],
                    "choices": [f" {word}" for word in choices],
                    "answer": answer,
                }

    return _dataset(questions, plays)


def passages(**_: Any) -> dict[str, Any]:
    """Pieces of text, each about as long as a page."""

    def questions(play: str, _: random.Random) -> Iterator[dict[str, Any]]:
        for start in range(0, len(play) - PASSAGE_CHARS, PASSAGE_CHARS):
            yield {"text": play[start : start + PASSAGE_CHARS]}

    return _dataset(questions)


def _lines(play: str) -> Iterator[tuple[str, str]]:
    """Lines of speeches, each with the text before it."""
    for match in re.finditer(r"^[^\[\n][^\[\]\n]{19,}[^:\n]$", play, re.M):
        if not match[0].isupper():
            yield play[max(0, match.start() - CONTEXT_CHARS) : match.start()], match[0]


def _dataset(
    questions: Callable[[str, random.Random], Iterator[dict[str, Any]]], plays: list[str] | None = None
) -> dict[str, Any]:
    """At most MOST_QUESTIONS, drawn from all the plays; the same ones every time."""
    from datasets import Dataset

    rng = random.Random(0)
    found = [question for play in plays or held_out_plays() for question in questions(play, rng)]
    chosen = sorted(rng.sample(range(len(found)), min(MOST_QUESTIONS, len(found))))
    return {"test": Dataset.from_list([found[i] for i in chosen])}
