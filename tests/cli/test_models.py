"""list, info, count, bench: every architecture, its parts, its size, its speed."""

import argparse
import json
import re

import mlx.core as mx
import pytest

from lmxlab.cli import ARCHITECTURES, cmd_bench, cmd_count, cmd_info, cmd_list
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_tiny


def test_list_names_every_architecture_with_its_parts(cli) -> None:
    done = cli("list")
    assert done.code == 0 and "Available architectures:" in done.out
    for name in ARCHITECTURES:
        assert re.search(rf"^  {name} +attention=\w+  norm=\w+  ffn=\w+", done.out, re.M)
    assert "gpt_10m" in done.out and "llama32_1b" in done.out
    assert json.loads(cli("list", "--json").out)["llama"]["attention"] == "gqa"


def test_info_shows_the_settings(cli) -> None:
    done = cli("info", "gpt")
    assert "Architecture: gpt\n" in done.out
    assert re.search(r"d_model: +768\n", done.out) and re.search(r"attention: +mha\n", done.out)
    assert "Architecture: llama (tiny)" in cli("info", "llama", "--tiny").out
    assert json.loads(cli("info", "llama", "--tiny", "--json").out)["config"]["n_layers"] == 2


def test_count_agrees_with_the_model_and_holds_no_weights(cli) -> None:
    expected = LanguageModel(llama_tiny()).count_parameters()
    assert f"llama (tiny): {expected:,} parameters" in cli("count", "llama", "--tiny").out
    mx.reset_peak_memory()
    detail = cli("count", "llama", "--detail").out
    assert mx.get_peak_memory() < 100e6  # 5.9 billion parameters would be 24 GB
    assert "deepseek_v3_671b: 671," in cli("count", "deepseek_v3_671b").out
    assert mx.get_peak_memory() < 100e6
    shares = [float(share) for share in re.findall(r"([\d.]+)%", detail)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    parts = json.loads(cli("count", "gpt", "--json", "--detail").out)
    assert sum(parts["by_module"].values()) == parts["parameters"]


def test_a_preset_is_taken_where_an_architecture_is(cli) -> None:
    assert "gpt2: 124,439,808 parameters" in cli("count", "gpt2").out  # as Hugging Face counts it
    assert "Architecture: llama_10m\n" in cli("info", "llama_10m").out
    done = cli("count", "gpt_10m", "--tiny")
    assert done.code == 2 and "--tiny goes with an architecture" in done.err


def test_bench_measures_forward_and_generation(cli) -> None:
    done = cli("bench", "gpt", "--tiny", "--seq-len", "8", "--gen-tokens", "4")
    assert done.code == 0
    for words in ("Parameters:", "Memory:", "Forward pass", "Generation", "Prefill:", "Decode:"):
        assert words in done.out


@pytest.mark.parametrize("command", ["info", "count", "bench"])
def test_an_unknown_architecture_exits_1_and_offers_the_nearest(cli, command: str) -> None:
    done = cli(command, "lama")
    assert done.code == 1 and "did you mean 'llama'" in done.err and done.out == ""


def test_the_functions_take_a_namespace_without_the_optional_attributes(capsys: pytest.CaptureFixture[str]) -> None:
    cmd_list(argparse.Namespace())
    cmd_info(argparse.Namespace(arch="gpt"))
    cmd_count(argparse.Namespace(arch="gpt"))
    cmd_bench(argparse.Namespace(arch="gpt", tiny=True))
    assert "Architecture: gpt\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "total", "active"), [("mixtral_8x7b", 46.70, 12.88), ("deepseek_v3_671b", 671.03, 37.55)]
)
def test_info_tells_the_parameters_of_one_token(cli, preset: str, total: float, active: float) -> None:
    told = re.search(r"parameters: +([\d,]+), ([\d,]+) of them", cli("info", preset).out)
    assert told
    numbers = [int(number.replace(",", "")) / 1e9 for number in told.groups()]
    assert numbers == pytest.approx([total, active], abs=0.006)
    assert "of them" not in cli("info", "llama").out
