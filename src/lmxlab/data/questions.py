"""Questions with an answer that can be checked, one JSON object per line."""

from dataclasses import dataclass
from pathlib import Path

from lmxlab.data.examples import check_fields, read_rows
from lmxlab.errors import UserError


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that is right after it."""

    prompt: str
    answer: str

    def is_right(self, text: str) -> bool:
        """Whether the first line of `text`, spaces around it aside, is the answer.

        >>> Question("2+3=", "5").is_right(" 5\\n6+")
        True
        """
        return text.strip().partition("\n")[0].strip() == self.answer.strip()


def load_questions(path: str | Path) -> list[Question]:
    """The questions of a JSONL file with the fields `prompt` and `answer`; blank lines are skipped.

    Raises:
        UserError: naming the line that is no JSON object, or whose field is missing or empty.
    """
    questions = []
    for place, row in read_rows(path):
        check_fields(place, row, ("prompt", "answer"))
        if not isinstance(row["prompt"], str):
            raise UserError(f"{place} has messages: a prompt and an answer are texts.")
        questions.append(Question(row["prompt"], row["answer"]))
    return questions
