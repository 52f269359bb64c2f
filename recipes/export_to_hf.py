"""Fine-tune the embedded model on Shakespeare, write it as a Hugging Face folder, and load it with every tool there is.

python recipes/export_to_hf.py --steps 500 --out my-model
python recipes/export_to_hf.py --arch qwen3_tiny --tokenizer bpe:512

A run of `lmxlab train` or `lmxlab compare` is exported by `lmxlab export RUN DIR`.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.data import DataConfig, TokenBatches, load_glassllm, prepare
from lmxlab.data.hf_files import tokenizer_files
from lmxlab.models.convert import load_from_hf
from lmxlab.models.export import export_model
from lmxlab.models.families import resolve

# The tools run in processes of their own: PyTorch and lmxlab do not share a BLAS.
READERS = {
    "transformers": """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], attn_implementation="eager")
ids = tokenizer(sys.argv[2])["input_ids"]
print(json.dumps([ids, model(torch.tensor([ids])).logits[0].tolist()]))
""",
    "mlx_lm": """
import json, sys
import mlx.core as mx, mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
ids = tokenizer.encode(sys.argv[2])
print(json.dumps([ids, model(mx.array([ids]))[0].tolist()]))
""",
}
NEEDS = {"transformers": ("transformers", "torch"), "mlx_lm": ("mlx_lm",)}
TEXT = "To be, or not to be"


@dataclass
class Options:
    arch: str = ""
    """A preset to train from scratch, instead of the embedded model."""
    tokenizer: str = "char"
    """For --arch: char, bpe:SIZE or a tokenizer's JSON file."""
    steps: int = 30
    """Training steps of 16 x 64 tokens."""
    learning_rate: float = 3e-4
    out: Path | None = None
    """Where to write it; by default a temporary folder."""
    shard_mb: float = 5000.0
    """Weights are split into files of at most this size."""
    overwrite: bool = False
    """Replace the folder if it is there."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options, scratch: Path) -> None:
    mx.random.seed(options.seed)
    if options.arch:
        prepared = prepare(DataConfig(tokenizer=options.tokenizer))
        model = lmxlab.LanguageModel(dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size))
    else:
        model, _ = load_glassllm()
        prepared = prepare(DataConfig(tokenizer="glassllm"))
    steps = 2 if options.quick else options.steps
    settings = lmxlab.TrainConfig(learning_rate=options.learning_rate, max_steps=steps, seed=options.seed)
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    print(f"training loss {losses[0]['loss']:.2f} -> {losses[-1]['loss']:.2f} in {steps} steps")

    folder = options.out or scratch / "model"
    bos = prepared.tokenizer.bos_id
    model_type = export_model(
        model,
        folder,
        tokens={"bos_token_id": bos, "eos_token_id": bos},
        files=tokenizer_files(prepared.tokenizer, model.config.block.max_seq_len),
        shard_bytes=int(options.shard_mb * 1e6),
        overwrite=options.overwrite,
    )
    print(f"{folder}: a {model_type} model, {', '.join(sorted(path.name for path in folder.iterdir()))}")

    model.eval()
    ids = prepared.tokenizer.encode(TEXT)
    logits = np.array(model(mx.array([ids]))[0][0])
    again, _ = load_from_hf(str(folder), dtype=mx.float32)
    print(f"  lmxlab        largest gap of logits {np.abs(np.array(again(mx.array([ids]))[0][0]) - logits).max():.1e}")
    for tool, program in READERS.items():
        missing = [name for name in NEEDS[tool] if importlib.util.find_spec(name) is None]
        if missing or options.quick:
            print(f"  {tool:<13} {'left out' if options.quick else f'needs {missing[0]}'}")
            continue
        command = [sys.executable, "-c", program, str(folder), TEXT]
        read, theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        same = "the same tokens" if read == ids else f"OTHER TOKENS: {read} for {ids}"
        print(f"  {tool:<13} largest gap of logits {np.abs(np.array(theirs) - logits).max():.1e}, {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        main(tyro.cli(Options, description=__doc__), Path(root))
