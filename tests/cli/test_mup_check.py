"""The verdict, the picture and the exit status of `lmxlab mup-check`."""

import json

import pytest

from .conftest import Cli

FAST = ["--widths", "16", "32", "--seeds", "1", "--steps", "2"]


def test_both_parametrisations_are_shown_and_drawn(cli: Cli, folder) -> None:
    done = cli("mup-check", "gpt", *FAST)
    assert "muP: RMS" in done.out and "standard: RMS" in done.out and "layer_1/output" in done.out
    assert ("muP passes" in done.out) == (done.code == 0)
    assert (folder / "mup-check.png").stat().st_size > 10_000


def test_json_tells_what_is_behind_the_verdict(cli: Cli, folder) -> None:
    done = cli("mup-check", "llama", *FAST, "--json", "--picture", "a.png")
    told = json.loads(done.out)
    assert told["picture"] == "a.png" and (folder / "a.png").exists()
    assert told["muP"]["passed"] == (done.code == 0)
    rms = told["standard"]["rms"]["logits"]
    assert told["standard"]["widths"] == [16, 32] and len(rms) == 2 and rms[0] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "Unknown"),
        (["gpt", "--widths", "64"], "at least 2 widths"),
        (["gpt", "--widths", "33", "66"], "33"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli("mup-check", *arguments, "--steps", "1", "--seeds", "1")
    assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) <= 2
