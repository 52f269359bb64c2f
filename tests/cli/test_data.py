"""data: preparing a dataset by itself."""

import sys

import pytest

from .conftest import Cli


def test_a_missing_extra_is_one_line_that_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    done = cli("data", "prepare", "pydocs", "--tokenizer", "tiktoken:gpt2")
    assert done.code == 2 and "pip install" in done.err and "Traceback" not in done.err
