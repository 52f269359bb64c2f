"""Ten steps of a GPT in PyTorch under the mup package: `python mup_reference.py FOLDER ...`, in a process of its own.

A folder holds spec.json, start.npz (the weights by their names in lmxlab, positions, tokens); it gets end.npz (weights
and logits after the steps) and rules.json (what mup does with each weight: rate and initial standard deviation).
"""

import json
import sys
from pathlib import Path
from typing import Any

import mup
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1]  # 1/d, not 1/sqrt(d)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


class FFN(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.ffn = Attention(width, n_heads), FFN(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attn_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class GPT(nn.Module):
    def __init__(self, width: int, spec: dict[str, Any]):
        super().__init__()
        self.embed = nn.Embedding(spec["vocab"], width)
        self.blocks = nn.ModuleList(Block(width, spec["heads"]) for _ in range(spec["layers"]))
        self.final_norm = nn.LayerNorm(width)
        if spec["tied"]:
            self.head = mup.MuSharedReadout(self.embed.weight, bias=False)
        else:
            self.head = mup.MuReadout(width, spec["vocab"], bias=False)
        self.scale = spec["embed_scale"]

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) * self.scale + positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.final_norm(h))


def main(folder: Path) -> None:
    spec = json.loads((folder / "spec.json").read_text())
    start = dict(np.load(folder / "start.npz"))
    x, positions = torch.tensor(start.pop("tokens")).long(), torch.tensor(start.pop("positions"))
    model, base, delta = (GPT(width, spec) for width in (spec["width"], spec["base"], spec["base"] * 3 // 2))
    mup.set_base_shapes(model, base, delta=delta, rescale_params=False)
    named = {name: p for name, p in model.named_parameters() if not (spec["tied"] and name == "head.weight")}
    assert named.keys() == start.keys(), named.keys() ^ start.keys()
    for name, parameter in named.items():
        parameter.data.copy_(torch.tensor(start[name]))
    decayed = [p for name, p in named.items() if p.ndim == 2 and name != "embed.weight"]
    rest = [p for name, p in named.items() if p.ndim < 2 or name == "embed.weight"]
    groups = [{"params": decayed, "weight_decay": spec["decay"]}, {"params": rest, "weight_decay": 0.0}]
    optimizer = mup.MuAdamW(groups, lr=spec["lr"], eps=spec["eps"])
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for _ in range(spec["steps"]):
        optimizer.zero_grad()
        logits = model(x[:, :-1], positions)
        F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
    rules = {}
    for name, parameter in named.items():
        drawn = nn.Parameter(torch.empty_like(parameter))
        drawn.infshape = parameter.infshape
        torch.manual_seed(0)
        mup.init.normal_(drawn, std=1.0)
        rules[name] = {"rate": rates[id(parameter)] / spec["lr"], "std": drawn.std().item()}
    (folder / "rules.json").write_text(json.dumps(rules))
    logits = model(x[:, :-1], positions).detach().numpy()
    np.savez(folder / "end.npz", logits=logits, **{name: p.detach().numpy() for name, p in named.items()})


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        main(Path(folder))
