"""Fine-tune a pretrained model with LoRA on text it has not seen, save the adapter, and use it again.

python recipes/finetune_lora.py --dora --rank 16 --targets attention ffn
python recipes/finetune_lora.py --model FOLDER_OR_REPO --tokenizer hf:FOLDER_OR_REPO --dataset my.txt --out my-adapter
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core import apply_lora, load_lora_adapters, merge_lora, save_lora_adapters
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, load_glassllm, prepare
from lmxlab.models import load_from_hf
from lmxlab.models.text import stream_text
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
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "ffn")
    """Parts of layer names, or all-linear."""
    dora: bool = False
    """Train the lengths of the weights' rows apart from their directions."""
    dropout: float = 0.0
    steps: int = 40
    batch_size: int = 8
    seq_len: int = 64
    learning_rate: float = 1e-2
    out: Path | None = None
    """Where the adapter goes; a temporary folder without it."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps = 3 if options.quick else options.steps
    with tempfile.TemporaryDirectory() as work:
        model, prepared = load(options)
        out = options.out or Path(work) / "adapter"
        held_out = list(eval_batches(prepared.val, 32, options.seq_len, 512 if options.quick else 2048))
        settings = lmxlab.TrainConfig(
            **{"learning_rate": options.learning_rate, "max_steps": steps, "warmup_steps": steps // 10},
            **{"weight_decay": 0.0, "seed": options.seed},
        )
        mx.random.seed(options.seed)
        apply_lora(
            model, options.rank, options.alpha, list(options.targets), dora=options.dora, dropout=options.dropout
        )
        trainer = lmxlab.Trainer(model, settings)
        base = trainer.evaluate(held_out)["eval_loss"]
        trained = sum(array.size for _, array in tree_flatten(model.trainable_parameters()))
        print(f"{options.model}: {model.count_parameters():,} parameters, of which {trained:,} are trained")
        mx.reset_peak_memory()
        trainer.train(TokenBatches(prepared.train, options.batch_size, options.seq_len, seed=options.seed))
        tuned = trainer.evaluate(held_out)["eval_loss"]
        print(f"held-out loss  {base:.3f} -> {tuned:.3f} nats per token, in {steps} steps")
        print(f"peak memory    {mx.get_peak_memory() / 1e6:.0f} MB")

        save_lora_adapters(out, model, metadata={"base": options.model, "steps": steps})
        size = (out / "adapter.safetensors").stat().st_size
        print(f"adapter        {size / 1e3:.0f} KB" + (f", in {out}" if options.out else ""))

        again, _ = load(options)
        load_lora_adapters(out, again)
        merge_lora(again)
        loaded = lmxlab.Trainer(again, settings).evaluate(held_out)["eval_loss"]
        print(f"loaded into the base model again and merged: {loaded:.3f}")
        prompt = [int(token) for token in prepared.val[:8]]
        text = "".join(stream_text(again, prepared.tokenizer, prompt, 60, seed=options.seed))
        print(f"\n{prepared.tokenizer.decode(prompt)}|{text}")


def load(options: Options) -> tuple[lmxlab.LanguageModel, PreparedData]:
    """The pretrained model, and the data in its tokens."""
    if options.model == "glassllm":
        (model, _), tokenizer = load_glassllm(), "glassllm"
    else:
        model, _ = load_from_hf(options.model, dtype=mx.float32)
        tokenizer = options.tokenizer or f"hf:{options.model}"
    return model, prepare(DataConfig(options.dataset, tokenizer, max_documents=options.documents))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
