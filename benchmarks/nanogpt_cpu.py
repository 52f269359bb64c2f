"""nanoGPT's CPU setting on tinyshakespeare: loss on the whole validation split after 2,000 iterations, and the time.

    python benchmarks/nanogpt_cpu.py [PATH_OF_INPUT_TXT [SEED]]

4 layers, 128 wide, 4 heads, length 64, batch 12, no dropout, no biases; AdamW 1e-3 to 1e-4 by cosine, warmup 100, betas
(0.9, 0.99), decay 0.1, clipping 1.0; the first 90% of the characters train (nanoGPT config and README). nanoGPT itself,
run on a 2-core x86 with PyTorch 2.13 eager: 1.886 nats in 102 s.
"""

import dataclasses
import sys
import time

import lmxlab
import mlx.core as mx
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.models.gpt import gpt_config

SHARED = "../shared/data/tinyshakespeare/input.txt"


def main() -> None:
    data = prepare(DataConfig(dataset=sys.argv[1] if len(sys.argv) > 1 else SHARED, tokenizer="char"))
    config = gpt_config(data.vocab_size, 128, 4, 4, 512, 64)
    config = dataclasses.replace(
        config, block=dataclasses.replace(config.block, position="learned", bias=False), embed_scale=1.0
    )
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1337
    mx.random.seed(seed)
    trainer = lmxlab.Trainer(
        lmxlab.LanguageModel(config),
        lmxlab.TrainConfig(
            learning_rate=1e-3,
            min_lr_ratio=0.1,
            warmup_steps=100,
            max_steps=2000,
            batch_size=12,
            betas=(0.9, 0.99),
            weight_decay=0.1,
        ),
    )
    start = time.perf_counter()
    trainer.train(TokenBatches(data.train, 12, 64, seed=seed))
    seconds = time.perf_counter() - start
    loss = trainer.evaluate(eval_batches(data.val, 64, 64))["eval_loss"]
    print(f"vocabulary {data.vocab_size}, {len(data.train):,} training and {len(data.val):,} validation characters")
    print(f"validation loss {loss:.4f} nats after 2,000 iterations in {seconds:.1f} s")


if __name__ == "__main__":
    main()
