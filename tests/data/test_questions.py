"""Questions whose answers can be checked."""

import json
from pathlib import Path

import pytest

from lmxlab.data.questions import Question, load_questions
from lmxlab.errors import UserError


@pytest.mark.parametrize(("text", "right"), [("5", True), (" 5 \n6", True), ("55", False), ("", False), ("\n5", True)])
def test_the_first_line_is_the_answer(text: str, right: bool) -> None:
    assert Question("2+3=", "5").is_right(text) is right


def test_questions_are_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"prompt": "1+1=", "answer": "2"}\n\n{"prompt": "1+2=", "answer": "3", "level": 1}\n')
    assert load_questions(file) == [Question("1+1=", "2"), Question("1+2=", "3")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1"}, "no field 'answer'"),
        ({"prompt": "1", "answer": ""}, "answer is empty"),
        ({"prompt": [{"role": "user", "content": "1"}], "answer": [{"role": "a", "content": "1"}]}, "are texts"),
    ],
)
def test_rows_that_cannot_serve_are_named(row: dict[str, object], message: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"line 1.*{message}"):
        load_questions(file)
