"""The examples of the README and of docs/ run as they stand (those of docstrings run as doctests)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmxlab.cli.app import COMMANDS
from lmxlab.core.components import attention_registry, ffn_registry
from lmxlab.core.norm import norm_registry
from lmxlab.core.position import position_registry
from lmxlab.models.families import FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and line, text) of every fenced block in that language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.M | re.S):
            line = text.count("\n", 0, match.start()) + 1
            found.append((f"{page.relative_to(ROOT)}:{line}", match[1]))
    return found


@pytest.mark.parametrize(("place", "code"), [pytest.param(*block, id=block[0]) for block in blocks("python")])
def test_a_python_example_runs(place, code, tmp_path):
    run_example(place, code, tmp_path)


@pytest.mark.parametrize(("place", "code"), [pytest.param(*block, id=block[0]) for block in blocks("python lm_eval")])
def test_a_python_example_with_lm_eval_runs(place, code, tmp_path):
    pytest.importorskip("lm_eval")
    run_example(place, code, tmp_path)


@pytest.mark.parametrize(("place", "code"), [pytest.param(*block, id=block[0]) for block in blocks("python sandbox")])
def test_a_python_example_with_the_sandbox_runs(place, code, tmp_path):
    pytest.importorskip("wasmtime")
    run_example(place, code, tmp_path)


def run_example(place, code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{place}\n{done.stderr}"
    printed = re.findall(r"print\(.*\)  # (.*)$", code, re.M)  # `print(x)  # what it prints`
    assert printed == done.stdout.splitlines() or not printed


def test_every_command_that_a_page_names_exists():
    named = [(place, name) for place, text in blocks("sh") for name in re.findall(r"^lmxlab ([a-z-]+)", text, re.M)]
    for page in PAGES:
        named += [(page.name, name) for name in re.findall(r"`lmxlab ([a-z-]+)", page.read_text(encoding="utf-8"))]
    assert named
    assert [(place, name) for place, name in named if name not in COMMANDS] == []


def test_what_a_page_links_to_is_there():
    links = [
        (page, target)
        for page in [*PAGES, ROOT / "recipes" / "README.md", ROOT / "benchmarks" / "README.md", ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target
    ]
    assert links
    assert [f"{page.name}: {target}" for page, target in links if not (page.parent / target).exists()] == []


def test_every_page_can_be_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"docs/{page.name}" not in readme] == []


def test_the_readme_counts_the_families():
    told = re.search(r"^(\d+) families", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert told and int(told[1]) == len(FAMILIES)


def test_the_page_of_models_names_every_part():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    for registry in (attention_registry, ffn_registry, norm_registry, position_registry):
        assert [name for name in registry.keys() if f"`{name}`" not in page] == []  # noqa: SIM118
