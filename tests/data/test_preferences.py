"""Preference data: what lines may be, how too long pairs are cut, and batches that resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmxlab.data.borrowed import HFTokenizer
from lmxlab.data.preferences import Pair, PreferenceBatches, Preferences, load_preferences, make_preferences
from lmxlab.data.tokenizer import CharTokenizer
from lmxlab.errors import UserError

PLAIN = CharTokenizer("abcdefgh ")
WITH_BOS = CharTokenizer("abcdefgh ", bos=True)
ROW = {"prompt": "abc", "chosen": "de", "rejected": "fgh"}


def chars(tokens: list[int]) -> str:
    return PLAIN.decode(tokens)


class Templated(CharTokenizer):
    """One character a role; a template writes <role>content| and, for an open turn, <a>."""

    eos_token_id = 0

    def __init__(self) -> None:
        super().__init__("abcdefgh <>|usr")

    def apply_chat_template(self, messages: list[dict[str, str]], open_turn: bool = True) -> str:
        text = "".join(f"<{message['role'][0]}>{message['content']}|" for message in messages)
        return text + "<a>" * open_turn


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_plain_texts_become_prompt_and_completions_that_end(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROW, "", {**ROW, "score": 3})
    bos = WITH_BOS.bos_id
    read = load_preferences(path, WITH_BOS)
    encode = WITH_BOS.encode
    assert read.pairs == [Pair([bos, *encode("abc")], [*encode("de"), bos], [*encode("fgh"), bos])] * 2
    assert read.truncated == read.dropped == 0
    assert load_preferences(path, PLAIN, end_id=7).pairs[0] == Pair(
        encode("abc"), [*encode("de"), 7], encode("fgh") + [7]
    )
    assert load_preferences(path, PLAIN).pairs[0] == Pair(*(PLAIN.encode(ROW[name]) for name in ROW))


def test_messages_go_through_the_chat_template() -> None:
    tokenizer = Templated()
    user = [{"role": "user", "content": "ab"}]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "cd"), ("rejected", "e"))}
    (pair,) = make_preferences([{"prompt": user, **answers}], tokenizer).pairs
    assert [tokenizer.decode(part) for part in pair] == ["<u>ab|<a>", "cd|", "e|"]


def test_messages_go_through_the_template_of_a_hugging_face_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[U]", "[A]", "[END]", "hello", "yes", "no", "[UNK]"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[END]", unk_token="[UNK]")
    fast.add_special_tokens({"additional_special_tokens": ["[U]", "[A]"]})
    row = {"prompt": [{"role": "user", "content": "hello"}]}
    row |= {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "yes"), ("rejected", "no"))}
    fast.save_pretrained(tmp_path / "none")
    with pytest.raises(UserError, match="row 0: the tokenizer of .* has no chat template"):
        make_preferences([row], HFTokenizer(str(tmp_path / "none")))
    fast.chat_template = (
        "{% for m in messages %}{{ '[U] ' if m.role == 'user' else '[A] ' }}{{ m.content }} [END] {% endfor %}"
        "{% if add_generation_prompt %}{{ '[A] ' }}{% endif %}"
    )
    fast.save_pretrained(tmp_path / "some")
    (pair,) = make_preferences([row], HFTokenizer(str(tmp_path / "some"))).pairs
    assert pair == Pair([0, 3, 2, 1], [4, 2], [5, 2])
    fast.chat_template = "{{ raise_exception('a system message comes first') }}"
    fast.save_pretrained(tmp_path / "strict")
    with pytest.raises(UserError, match="row 0: the chat template of .* refuses .* a system message comes first"):
        make_preferences([row], HFTokenizer(str(tmp_path / "strict")))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"line 2 has no field 'rejected'; its fields are \['chosen', 'prompt'\]"),
        ({**ROW, "prompt": ""}, "line 2: prompt is empty"),
        ({**ROW, "chosen": " \n"}, "line 2: chosen is empty"),
        ({**ROW, "rejected": []}, "line 2: rejected is empty"),
        ({**ROW, "rejected": None}, "line 2: rejected is a NoneType"),
        ({**ROW, "rejected": "de"}, "line 2: chosen and rejected are equal"),
        ({**ROW, "prompt": [{"role": "user", "content": "a"}]}, "line 2 mixes texts and lists of messages"),
        ({name: [{"role": "user", "content": name}] for name in ROW}, "line 2 has messages, but .* no chat template"),
        ({name: [{"role": "user", "text": name}] for name in ROW}, "line 2: a message is .* write"),
        ({name: [{"role": "user", "content": name[:i]}] for i, name in enumerate(ROW)}, "line 2: the content .* empty"),
        ("[1, 2]", "line 2 is not a JSON object"),
        ('{"prompt": ', "line 2 is not JSON"),
    ],
    ids=str,
)
def test_a_line_that_is_no_preference_is_named(bad: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_preferences(write(tmp_path / "p.jsonl", ROW, bad), PLAIN)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    class Rewriting(Templated):
        def apply_chat_template(self, messages: list[dict[str, str]], open_turn: bool = True) -> str:
            return f"<{len(messages)}>".replace("1", "a").replace("2", "b")

    row = {name: [{"role": "user", "content": name}] for name in ROW}
    with pytest.raises(UserError, match="row 0: the chat template writes the prompt in another way"):
        make_preferences([row], Rewriting())


@pytest.mark.parametrize(
    ("side", "limit", "expected"),
    [
        ("left", 6, ("cde", "gh", "hga")),
        ("left", 4, ("e", "gh", "hga")),
        ("left", 3, ("e", "gh", "hg")),
        ("right", 7, ("abcde", "gh", "hg")),
        ("right", 6, ("abcde", "g", "h")),
        ("left", 8, ("abcde", "gh", "hga")),
    ],
)
def test_long_pairs_lose_tokens_from_the_stated_side(side: str, limit: int, expected: tuple[str, str, str]) -> None:
    row = {"prompt": "abcde", "chosen": "gh", "rejected": "hga"}
    read = make_preferences([row], PLAIN, limit, truncate=side)
    assert tuple(chars(part) for part in read.pairs[0]) == expected
    assert read.truncated == (limit < 8) and read.dropped == 0
    assert max(len(pair.prompt + max(pair[1:], key=len)) for pair in read.pairs) <= limit


def test_pairs_without_a_difference_left_are_dropped_and_counted() -> None:
    rows = [
        {"prompt": "abc", "chosen": "de", "rejected": "fe"},
        {"prompt": "abc", "chosen": "de", "rejected": "df"},  # equal in the one token that is left
        {"prompt": "abcdef", "chosen": "de", "rejected": "fe"},  # no room for any
    ]
    read = make_preferences(rows, PLAIN, 4, truncate="right")
    assert len(read.pairs) == 1 and (read.truncated, read.dropped) == (3, 2)
    with pytest.raises(UserError, match="no preference pairs"):
        make_preferences(rows[1:], PLAIN, 4, truncate="right")


@pytest.mark.parametrize(
    ("options", "message"), [({"truncate": "middle"}, "left, right"), ({"max_tokens": 1}, "at least 2")], ids=str
)
def test_limits_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_preferences([ROW], PLAIN, **options)


def pairs(n: int) -> Preferences:
    draw = np.random.default_rng(0)
    made = [Pair([9, i + 1], [i + 1] * int(draw.integers(1, 5)), [50] * int(draw.integers(1, 40))) for i in range(n)]
    return Preferences(made, reference=np.arange(2 * n, dtype=np.float32).reshape(2, n))


def test_a_batch_holds_tokens_masks_and_the_reference_of_its_pairs() -> None:
    given = pairs(10)
    chosen, rejected, chosen_mask, rejected_mask, ref_chosen, ref_rejected = map(
        np.array, next(PreferenceBatches(given, 4, seed=1))
    )
    assert chosen.shape == rejected.shape == chosen_mask.shape == rejected_mask.shape
    assert chosen.shape[0] == 4
    for i, number in enumerate(ref_chosen.astype(int)):
        pair = given.pairs[number]
        for tokens, mask, completion in (
            (chosen, chosen_mask, pair.chosen),
            (rejected, rejected_mask, pair.rejected),
        ):
            whole = pair.prompt + completion
            assert tokens[i, : len(whole)].tolist() == whole and not tokens[i, len(whole) :].any()
            assert np.flatnonzero(mask[i]).tolist() == list(range(2, len(whole)))
        assert ref_rejected[i] == number + 10


def test_rows_are_as_wide_as_a_multiple_of_32_or_the_longest_of_all() -> None:
    """Which may be as long as the model's context."""
    lengths = {len(pair.prompt + max(pair[1:], key=len)) for pair in pairs(10).pairs}
    assert min(lengths) < 32 < max(lengths) < 64
    widths = {batch[0].shape[1] for batch in PreferenceBatches(pairs(10), 1).in_order()}
    assert widths == {32, max(lengths)}


def test_every_epoch_draws_each_pair_once_in_another_order() -> None:
    batches = PreferenceBatches(pairs(10), 5, seed=1)
    epochs = [np.concatenate([np.array(next(batches)[4]) for _ in range(2)]).astype(int).tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    assert np.concatenate(
        [np.array(batch[4]) for batch in PreferenceBatches(pairs(10), 4).in_order()]
    ).tolist() == list(range(10))


def test_batches_resume_where_they_stood_and_only_over_the_same_pairs() -> None:
    one, other = (PreferenceBatches(pairs(7), 3, seed=2) for _ in range(2))
    for _ in range(4):
        next(one)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for _ in range(4):
        assert np.array_equal(next(one)[4], next(other)[4])
    changed = Preferences([*pairs(7).pairs[:-1], Pair([1], [2], [3])])
    for wrong in (PreferenceBatches(pairs(7), 3, seed=1), PreferenceBatches(changed, 3, seed=2)):
        with pytest.raises(UserError, match="of other batches"):
            wrong.load_state_dict(one.state_dict())
    with pytest.raises(UserError, match="batch_size is 0"):
        PreferenceBatches(pairs(7), 0)


def test_a_split_keeps_pairs_with_their_reference() -> None:
    first, second = pairs(10).split(7)
    assert first.pairs + second.pairs == pairs(10).pairs
    assert second.reference is not None and second.reference.tolist() == [[7, 8, 9], [17, 18, 19]]
    with pytest.raises(UserError, match=r"must be \(2, 10\)"):
        Preferences(pairs(10).pairs, reference=np.zeros((10, 2)))
