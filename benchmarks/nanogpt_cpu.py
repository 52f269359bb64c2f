"""nanoGPT's CPU setting on tinyshakespeare: loss on the whole validation split after 2,000 iterations, and the time.

    python benchmarks/nanogpt_cpu.py [--data INPUT_TXT] [--seed 1337] [--no-peer]

4 layers, 128 wide, 4 heads, length 64, batch 12, no dropout, no biases, 2,000 iterations; the first 90% of the
characters train (nanoGPT config and README). Three contenders, one after the other:

- lmxlab with Muon, its best recipe for this setting;
- lmxlab with nanoGPT's recipe: AdamW 1e-3 to 1e-4 by cosine, warmup 100, betas (0.9, 0.99), decay 0.1, clipping 1.0;
- the same recipe in PyTorch eager (nanogpt_peer.py).
"""

import argparse
import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import lmxlab
import mlx.core as mx
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.models.gpt import gpt_config
from lmxlab.platform import physical_cores

SHARED = "../shared/data/tinyshakespeare/input.txt"
NANOGPT = lmxlab.TrainConfig(
    learning_rate=1e-3,
    min_lr_ratio=0.1,
    warmup_steps=100,
    max_steps=2000,
    batch_size=12,
    betas=(0.9, 0.99),
    weight_decay=0.1,
)
RECIPES = {
    "lmxlab, Muon 3e-3": dataclasses.replace(NANOGPT, optimizer="muon", learning_rate=3e-3),
    "lmxlab, nanoGPT's AdamW": NANOGPT,
}


def train(data: PreparedData, recipe: lmxlab.TrainConfig, seed: int) -> tuple[float, float]:
    """Validation loss in nats, and the seconds of training."""
    config = gpt_config(data.vocab_size, 128, 4, 4, 512, 64)
    config = dataclasses.replace(
        config, block=dataclasses.replace(config.block, position="learned", bias=False), embed_scale=1.0
    )
    mx.random.seed(seed)
    trainer = lmxlab.Trainer(lmxlab.LanguageModel(config), recipe)
    start = time.perf_counter()
    trainer.train(TokenBatches(data.train, 12, 64, seed=seed))
    seconds = time.perf_counter() - start
    return trainer.evaluate(eval_batches(data.val, 64, 64))["eval_loss"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=SHARED)
    parser.add_argument("--seed", type=int, default=1337)
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")
    args = parser.parse_args()
    data = prepare(DataConfig(dataset=args.data, tokenizer="char"))
    print(f"vocabulary {data.vocab_size}, {len(data.train):,} training and {len(data.val):,} validation characters")
    for name, recipe in RECIPES.items():
        loss, seconds = train(data, recipe, args.seed)
        print(f"{name:<26} validation loss {loss:.4f} nats in {seconds:5.1f} s", flush=True)
    if not args.no_peer:
        peer = Path(__file__).with_name("nanogpt_peer.py")
        subprocess.run([sys.executable, str(peer), args.data, str(args.seed), str(physical_cores())], check=True)


if __name__ == "__main__":
    main()
