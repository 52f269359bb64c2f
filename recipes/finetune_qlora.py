"""Quantise a pretrained model to a few bits and fine-tune adapters over it: a fraction of the memory of its weights.

python recipes/finetune_qlora.py --mode mxfp4
python recipes/finetune_qlora.py --model FOLDER_OR_REPO --tokenizer hf:FOLDER_OR_REPO --bits 4 --dataset my.txt
"""

from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core import apply_qlora, dequantize_model, merge_lora, quantize_model, save_lora_adapters
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, load_glassllm, prepare
from lmxlab.models import load_from_hf
from mlx.utils import tree_flatten


@dataclass
class Options:
    model: str = "glassllm"
    """glassllm (no network), or a folder or repo of Hugging Face."""
    tokenizer: str | None = None
    """The model's: hf:REPO, or a tokenizer's JSON file. glassllm brings its own."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    documents: int = 2
    """Read no more documents than this."""
    bits: int = 4
    group_size: int = 64
    """Weights that share a scale."""
    mode: str = "affine"
    """affine, mxfp4, mxfp8 or nvfp4; but for affine each has its own bits and group size."""
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("all-linear",)
    """Parts of layer names, or all-linear."""
    steps: int = 40
    batch_size: int = 8
    seq_len: int = 64
    learning_rate: float = 1e-2
    out: Path | None = None
    """Where the adapter goes; nowhere without it."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps = 3 if options.quick else options.steps
    model, prepared = load(options)
    held_out = list(eval_batches(prepared.val, 32, options.seq_len, 512 if options.quick else 2048))
    settings = lmxlab.TrainConfig(
        **{"learning_rate": options.learning_rate, "max_steps": steps, "warmup_steps": steps // 10},
        **{"weight_decay": 0.0, "seed": options.seed},
    )
    losses, whole = {"whole": score(model, settings, held_out)}, megabytes(model)
    narrow = quantize_model(model, options.bits, options.group_size, options.mode, skip_narrow=True)
    losses["quantised"] = score(model, settings, held_out)
    print(f"{options.model}: weights {whole:.2f} MB, quantised ({options.mode}) {megabytes(model):.2f} MB")
    if narrow:
        print(f"left whole, as their rows are no multiple of the group size: {', '.join(sorted(narrow))}")

    mx.random.seed(options.seed)
    apply_qlora(model, options.rank, options.alpha, list(options.targets))
    trained = sum(array.nbytes for _, array in tree_flatten(model.trainable_parameters()))
    trainer = lmxlab.Trainer(model, settings)
    mx.reset_peak_memory()
    trainer.train(TokenBatches(prepared.train, options.batch_size, options.seq_len, seed=options.seed))
    losses["quantised, tuned"] = trainer.evaluate(held_out)["eval_loss"]
    print(f"adapters {trained / 1e6:.2f} MB; peak memory of training {mx.get_peak_memory() / 1e6:.0f} MB")
    if options.out is not None:
        save_lora_adapters(options.out, model, metadata={"base": options.model, "steps": steps})
        print(f"saved in {options.out}")
    dequantize_model(model)
    merge_lora(model)
    losses["dequantised and merged"] = score(model, settings, held_out)
    print("\nheld-out loss, nats per token")
    for name, loss in losses.items():
        print(f"  {name:24} {loss:.3f}")


def load(options: Options) -> tuple[lmxlab.LanguageModel, PreparedData]:
    """The pretrained model, and the data in its tokens."""
    if options.model == "glassllm":
        (model, _), tokenizer = load_glassllm(), "glassllm"
    else:
        model, _ = load_from_hf(options.model, dtype=mx.float32)
        tokenizer = options.tokenizer or f"hf:{options.model}"
    return model, prepare(DataConfig(options.dataset, tokenizer, max_documents=options.documents))


def score(model: lmxlab.LanguageModel, settings: lmxlab.TrainConfig, held_out: list) -> float:
    return lmxlab.Trainer(model, settings).evaluate(held_out)["eval_loss"]


def megabytes(model: lmxlab.LanguageModel) -> float:
    return sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
