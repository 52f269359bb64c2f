"""Three orders of the same text at equal FLOPs: windows of one length, from short to long, from easy to hard.

python recipes/train_curriculum.py --stages 8 --warmup-fraction 0.8 --steps 2000

Then the text's paragraphs, as documents that do not see each other: in rows of their own, and packed.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.data import DataConfig, PackedBatches, PackedRows, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.experiments.flops import estimate_flops_per_step
from lmxlab.models.llama import llama_config
from lmxlab.training.curriculum import difficulty_curriculum, length_curriculum

PIECE = 512  # tokens whose difficulty is judged together


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    min_seq_len: int = 16
    seq_len: int = 128
    """Tokens of a window, and of the longest one of the curriculum."""
    stages: int = 4
    """Lengths on the way from the shortest to the longest."""
    warmup_fraction: float = 0.5
    """When all rows are hard."""
    text_tokens: int = 400000
    """How much of the text is used."""
    d_model: int = 64
    steps: int = 200
    """Of the run with windows of one length; the others get as many FLOPs."""
    batch_size: int = 8
    learning_rate: float = 3e-3
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def train(options: Options, prepared: PreparedData, name: str, data: Iterable[Any], steps: int) -> None:
    mx.random.seed(options.seed)
    model = build(options, prepared)
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    trainer = lmxlab.Trainer(model, settings)
    trainer.train(data)
    held_out = eval_batches(prepared.val, 16, options.seq_len, 2000 if options.quick else 20000)
    print(f"{name:<28} {trainer.step:>5} steps   loss on unseen text {trainer.evaluate(held_out)['eval_loss']:.3f}")


def build(options: Options, prepared: PreparedData) -> lmxlab.LanguageModel:
    width = options.d_model
    return lmxlab.LanguageModel(llama_config(prepared.vocab_size, width, 4, 2, 2, 3 * width, 512, tie_embeddings=True))


def by_difficulty(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of the text that are easier to compress, and the others, each half in its own order."""
    pieces = [tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE)]
    sizes = np.array([len(zlib.compress(piece.astype(np.uint16).tobytes())) / len(piece) for piece in pieces])
    easy = sizes <= np.median(sizes)
    halves = ([piece for piece, kept in zip(pieces, which, strict=True) if kept] for which in (easy, ~easy))
    first, second = (np.concatenate(half) for half in halves)
    return first, second


def main(options: Options) -> None:
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    tokens = np.asarray(prepared.train[: options.text_tokens])
    steps, n = (12 if options.quick else options.steps), options.batch_size
    model = build(options, prepared)

    def cost(seq_len: int) -> int:
        return estimate_flops_per_step(model, n, seq_len, attention_len=seq_len)

    budget = steps * cost(options.seq_len)
    train(options, prepared, "windows of one length", TokenBatches(tokens, n, options.seq_len, options.seed), steps)
    lengths = options.min_seq_len, options.seq_len, options.stages
    stages = length_curriculum(tokens, n, *lengths, batches_per_stage=1).lengths
    per_stage = max(1, int(budget // sum(map(cost, stages))))
    data: Any = length_curriculum(tokens, n, *lengths, batches_per_stage=per_stage, seed=options.seed)
    train(options, prepared, f"lengths {', '.join(map(str, stages))}", data, len(data))
    easy, hard = by_difficulty(tokens)
    data = difficulty_curriculum(easy, hard, n, options.seq_len, steps, options.warmup_fraction, seed=options.seed)
    train(options, prepared, "from easy to hard", data, steps)

    text = prepared.tokenizer.decode(tokens[:50000].tolist())
    documents = [prepared.tokenizer.encode(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]
    documents = [document[: options.seq_len + 1] for document in documents if len(document) > 1]
    packed = PackedRows(documents, options.seq_len)
    alone = sum(len(document) - 1 for document in documents) / len(documents) / options.seq_len
    print(
        f"\n{len(documents)} paragraphs: rows of their own are {alone:.0%} full, the {len(packed)} rows that they are "
        f"packed into {packed.fill:.0%}"
    )
    steps = max(1, steps // 4)
    train(options, prepared, "packed paragraphs", PackedBatches(packed, n, options.seed), steps)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
