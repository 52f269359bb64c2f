"""Every recipe runs offline, in its quick form, and is told of in recipes/README.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = sorted(RECIPES.glob("*.py"))


@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_a_recipe_runs_in_its_quick_form(recipe, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, recipe, "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_has_a_line_for_every_recipe():
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in FILES if f"`{path.name}`" not in text] == []
