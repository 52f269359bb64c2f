"""Exported folders, loaded by the tools they were written for: `python reload.py SPEC.json`, in a process of its own.

SPEC.json is {"tokens": ids, "folders": {folder: whether mlx-lm loads it, too}}. Each folder gets `reloaded.npz` with
the logits of transformers and of mlx-lm, and `again/` with the weights as transformers saves them.
"""

import json
import sys
from pathlib import Path

import numpy as np


def by_transformers(folder: Path, tokens: list[list[int]]) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    model.save_pretrained(folder / "again")
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def by_mlx_lm(folder: Path, tokens: list[list[int]]) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    return np.array(model(mx.array(tokens)).astype(mx.float32))


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    for name, supported in spec["folders"].items():
        folder = Path(name)
        logits = {"transformers": by_transformers(folder, spec["tokens"])}
        if supported:
            logits["mlx_lm"] = by_mlx_lm(folder, spec["tokens"])
        np.savez(folder / "reloaded.npz", **logits)
