"""Examples of prompts and completions: what is scored, cut, padded, refused, and drawn in which order."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmxlab.data import CharTokenizer
from lmxlab.data.completions import CompletionBatches, Example, load_completions
from lmxlab.errors import UserError

TOKENIZER = CharTokenizer("0123456789+=ab ", bos=True)
END = TOKENIZER.bos_id


class Templated:
    """A tokenizer with a chat template that marks turns."""

    bos_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def apply_chat_template(self, messages: list[dict[str, str]], open_turn: bool) -> str:
        turns = "".join(f"<{message['role'][0]}>{message['content']}</>" for message in messages)
        return turns + ("<a>" if open_turn else "")


def write(path: Path, rows: list[Any]) -> Path:
    file = path / "rows.jsonl"
    file.write_text("\n\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


ROWS = [{"prompt": f"{i}+1=", "completion": str(i + 1), "source": "x"} for i in range(7)]


def test_completions_are_scored_to_their_end_and_prompts_are_not(tmp_path: Path) -> None:
    found = load_completions(write(tmp_path, ROWS), TOKENIZER)
    assert len(found.examples) == 7 and (found.truncated, found.dropped) == (0, 0)
    prompt, completion = found.examples[3]
    assert prompt == [END, *TOKENIZER.encode("3+1=")] and completion == [*TOKENIZER.encode("4"), END]
    x, y = (np.array(part) for part in CompletionBatches(found.examples, 7).batch(np.array([3])))
    assert x.shape == y.shape == (1, 6)
    assert x[0].tolist() == [*prompt, completion[0]] and y[0].tolist() == [-100] * 4 + completion
    longer = [*found.examples, Example(prompt, completion * 20)]
    x, y = (np.array(part) for part in CompletionBatches(longer, 7).batch(np.array([3])))
    assert x.shape == y.shape == (1, 32) and not x[0, 6:].any() and (y[0, 6:] == -100).all()


def test_messages_become_text_by_the_template(tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": [{"role": "assistant", "content": "yo"}],
    }
    example = load_completions(write(tmp_path, [row]), Templated()).examples[0]  # type: ignore[arg-type]
    assert "".join(map(chr, example.prompt)) == "<u>hi</><a>"
    assert "".join(map(chr, example.completion)) == "yo</>"


def test_what_is_too_long_is_cut_and_counted_and_what_has_no_room_is_dropped(tmp_path: Path) -> None:
    file = write(tmp_path, [{"prompt": "1+2=", "completion": "ab"}, {"prompt": "1", "completion": "a"}])
    plain = CharTokenizer("0123456789+=ab ", bos=False)
    found = load_completions(file, plain, 4, "right")
    assert (found.truncated, found.dropped) == (1, 1)
    assert found.examples == [(plain.encode("1"), plain.encode("a"))]


def test_every_example_comes_once_in_an_epoch_and_a_place_can_be_gone_on_from(tmp_path: Path) -> None:
    examples = load_completions(write(tmp_path, ROWS), TOKENIZER).examples
    batches = CompletionBatches(examples, 2, seed=3)
    seen = [np.array(next(batches)[0])[:, 1].tolist() for _ in range(7)]
    assert sorted(token for batch in seen for token in batch) == sorted(2 * [example.prompt[1] for example in examples])
    state = json.loads(json.dumps(batches.state_dict()))
    expected = [np.array(next(batches)[1]) for _ in range(5)]
    again = CompletionBatches(examples, 2, seed=3)
    again.load_state_dict(state)
    assert all(np.array_equal(np.array(next(again)[1]), y) for y in expected)
    for other in (CompletionBatches(examples, 2, seed=4), CompletionBatches(examples[1:], 2, seed=3)):
        with pytest.raises(UserError, match="of other batches"):
            other.load_state_dict(state)
    assert [len(np.array(x)) for x, _ in batches.in_order()] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "1"}], "line 1 has no field 'completion'; its fields are"),
        (["{", *ROWS], "line 1 is not JSON"),
        (["3"], 'line 1 is not a JSON object: write {"prompt": ..., "completion": ...}'),
        ([{"prompt": "1", "completion": " "}], "line 1: completion is empty"),
        ([{"prompt": "1", "completion": 2}], "completion is a int; give a text or a list of messages"),
        ([{"prompt": "1", "completion": [{"role": "a", "content": "b"}]}], "mixes texts and lists"),
        ([{"prompt": [{"role": "a"}], "completion": [{}]}], "a message is"),
        ([{"prompt": [{"role": "a", "content": "b"}], "completion": [{"role": "a", "content": "b"}]}], "no chat templ"),
        ([], "is empty"),
    ],
)
def test_rows_that_cannot_serve_are_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_completions(write(tmp_path, rows), TOKENIZER)


def test_lengths_and_sides_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, ROWS)
    with pytest.raises(UserError, match="max_tokens is 1"):
        load_completions(file, TOKENIZER, 1)
    with pytest.raises(UserError, match="truncate is 'middle'"):
        load_completions(file, TOKENIZER, truncate="middle")
    with pytest.raises(UserError, match="batch_size is 0"):
        CompletionBatches(load_completions(file, TOKENIZER).examples, 0)
