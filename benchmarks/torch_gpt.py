"""The peer of train_step.py: a GPT in PyTorch, eager, with fused AdamW and clipping. Run as a worker, prints JSON."""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        qkv = self.qkv(self.attn_norm(x)).view(batch, length, 3, self.heads, -1).transpose(1, 3)
        q, k, v = qkv.unbind(2)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(out.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ffn_norm(x))))


class GPT(nn.Module):
    def __init__(self, layers: int, width: int, heads: int, length: int, vocab: int):
        super().__init__()
        self.embed, self.position = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x, y):
        h = self.embed(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits = self.norm(h) @ self.embed.weight.T
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


def main() -> None:
    layers, width, heads, batch, length, vocab = json.loads(sys.argv[1])
    seconds = float(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(int(sys.argv[3]))
    model = GPT(layers, width, heads, length, vocab)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    x, y = torch.randint(0, vocab, (2, batch, length))
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - start)
    with open("/proc/self/status") as status:
        peak_kb = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"times_s": times[2:], "peak_mb": peak_kb / 1024}))


if __name__ == "__main__":
    main()
