"""What a run records of its code, its packages and its machine."""

import json
import subprocess
from pathlib import Path

from lmxlab.experiments.provenance import environment, git_state


def test_the_record_names_code_packages_and_machine() -> None:
    record = environment()
    assert record["packages"]["mlx"] and record["hardware"]["cores"] >= 1 and record["python"]
    json.dumps(record)


def test_the_state_of_the_code_is_kept(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": "unknown"}

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("x = 1\n")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "code.py").write_text("x = 2\n")
    (tmp_path / "new.txt").write_text("")
    dirty = git_state(tmp_path)
    assert dirty["dirty"] and "+x = 2" in dirty["diff"] and dirty["untracked"] == ["new.txt"]
