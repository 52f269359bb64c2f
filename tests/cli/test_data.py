"""data: preparing a dataset by itself."""

import json
import sys

import pytest

from .conftest import Cli


def test_a_missing_extra_is_one_line_that_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    done = cli("data", "prepare", "pydocs", "--tokenizer", "tiktoken:gpt2")
    assert done.code == 2 and "pip install" in done.err and "Traceback" not in done.err


def test_what_was_prepared_is_known_to_info(cli: Cli) -> None:
    flags = ["pydocs", "--cache-dir", "cache", "--json"]
    before = json.loads(cli("data", "info", *flags).out)
    assert before["prepared"] is False
    made = json.loads(cli("data", "prepare", *flags).out)
    after = json.loads(cli("data", "info", *flags).out)
    assert after["prepared"] is True and after["hash"] == made["hash"] and after["tokens"] == made["tokens"]
    assert json.loads(cli("data", "info", *flags, "--tokenizer", "bpe:300").out)["prepared"] is False
    listed = json.loads(cli("data", "info", "--json").out)
    assert "pydocs" in [dataset["name"] for dataset in listed]
