"""Writes docs/zoo.md, every case of test_parity.py with its gaps: `python tests/models/make_zoo_table.py`"""

import lmxlab  # before mlx, for its BLAS

# isort: split
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from models import reference
from models.test_parity import CASES

DOCS = Path(__file__).parent.parent.parent / "docs" / "zoo.md"
HEAD = """# The model zoo, held against its references

Tiny models with random weights (standard deviation 0.15), saved by `transformers` and read by `load_from_hf` in
float32, with MLX's own operations; logits have a spread of about 1 to 3. Made by
`python tests/models/make_zoo_table.py`; the tests hold the same cases.

- Logit gap: the largest absolute difference to the reference class, over sequences of 1, 12 and 40 tokens.
- Cache gap: 12 tokens at once and then one by one, against the whole sequence. Dynamic rope scaling beyond the trained
  context goes by the length of a pass, so there the two differ by definition.
- Causality: the largest change of earlier logits when later tokens change.

| case | reference | logit gap | cache gap | causality |
|---|---|---|---|---|
"""


def row(case: str, kind: str, folder: Path) -> str:
    model, _ = lmxlab.models.load_from_hf(str(folder), dtype=mx.float32)
    model.eval()
    expected = np.load(folder / "expected.npz")
    gaps = [np.abs(np.array(model(mx.array(expected[f"x{n}"]))[0]) - expected[f"logits{n}"]).max() for n in (1, 12, 40)]
    x = mx.array(expected["x40"])
    full, _ = model(x)
    parts, cache = [], model.make_cache()
    for start, end in [(0, 12), *((i, i + 1) for i in range(12, 40))]:
        logits, cache = model(x[:, start:end], cache)
        parts.append(logits)
    cached = mx.abs(mx.concatenate(parts, axis=1) - full).max().item()
    changed, _ = model(mx.concatenate([x[:, :20], (x[:, 20:] + 1) % 61], axis=1))
    leaked = mx.abs(changed[:, :20] - full[:, :20]).max().item()
    return f"| {case} | {reference.CLASSES[kind][1]} | {max(gaps):.1e} | {cached:.1e} | {leaked:g} |"


def main() -> None:
    lmxlab.core.kernels.exact(True)
    with tempfile.TemporaryDirectory() as root:
        folders = {case: Path(root) / str(i) for i, case in enumerate(CASES)}
        spec = Path(root) / "spec.json"
        spec.write_text(json.dumps({str(folders[case]): definition for case, definition in CASES.items()}))
        subprocess.run([sys.executable, reference.__file__, str(spec)], check=True)
        rows = [row(case, kind, folders[case]) for case, (kind, _) in CASES.items()]
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text(HEAD + "\n".join(rows) + "\n")
    print(f"{len(rows)} cases in {DOCS}")


if __name__ == "__main__":
    main()
