"""Numbers as people read them, and tables that lose nothing when they are piped."""

import json

import pytest

from lmxlab.cli.render import number, out_json, table


def test_a_missing_number_is_never_shown_as_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert number(None) == number(float("nan")) == "-"
    out_json({"a": float("nan"), "b": [1.0, float("inf")]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.0, None]}


def test_a_piped_table_keeps_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = [f"{'x' * 30}{i}" for i in range(8)]
    table([f"column{i}" for i in range(8)], [row])
    header, line = capsys.readouterr().out.splitlines()
    assert line.split() == row
    assert header.split() == [f"column{i}" for i in range(8)]
