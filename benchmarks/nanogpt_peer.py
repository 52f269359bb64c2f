"""The peer of nanogpt_cpu.py: nanoGPT's model, initialisation and recipe in PyTorch eager. Run by it as a worker."""

import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, LAYERS, LENGTH, BATCH = 128, 4, 4, 64, 12
STEPS, WARMUP, PEAK, FLOOR = 2000, 100, 1e-3, 1e-4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.qkv, self.attn_proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.ffn_proj = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, length, 3, HEADS, -1).transpose(1, 3)
        out = functional.scaled_dot_product_attention(*qkv.unbind(2), is_causal=True)
        x = x + self.attn_proj(out.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.ffn_proj(functional.gelu(self.up(self.ffn_norm(x))))


class NanoGPT(nn.Module):
    def __init__(self, vocab: int):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if "_proj" in name else 0.02)

    def forward(self, x):
        h = self.embed(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h) @ self.embed.weight.T

    def nats(self, x, y, reduction="mean"):
        return functional.cross_entropy(self(x).flatten(0, 1), y.flatten(), reduction=reduction)


def learning_rate(step: int) -> float:
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2


def main() -> None:
    path, seed, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([ids[character] for character in text])
    train, val = tokens[: int(0.9 * len(tokens))], tokens[int(0.9 * len(tokens)) :]
    model = NanoGPT(len(ids))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    start = time.perf_counter()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        starts = torch.randint(len(train) - LENGTH, (BATCH,))
        windows = torch.stack([train[i : i + LENGTH + 1] for i in starts])
        loss = model.nats(windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    seconds = time.perf_counter() - start
    n_windows = (len(val) - 1) // LENGTH
    x = val[: n_windows * LENGTH].view(n_windows, LENGTH)
    y = val[1 : n_windows * LENGTH + 1].view(n_windows, LENGTH)
    with torch.no_grad():
        total = sum(model.nats(x[i : i + 64], y[i : i + 64], "sum").item() for i in range(0, n_windows, 64))
    print(f"{'PyTorch, the same AdamW':<26} validation loss {total / y.numel():.4f} nats in {seconds:5.1f} s")


if __name__ == "__main__":
    main()
