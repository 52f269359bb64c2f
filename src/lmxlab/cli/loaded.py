"""A model to use, wherever it comes from: a run, glassllm, a folder or repo in the layout of Hugging Face."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from lmxlab.cli.runs import find_run
from lmxlab.data import prepare
from lmxlab.data.glassllm import load_glassllm
from lmxlab.data.tokenizer import Tokenizer, check_vocabulary, load_tokenizer
from lmxlab.experiments.stored import check_same_data, load_model
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.weight_files import read_json
from lmxlab.training.run_folder import RunFolder


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        context: how many tokens it was trained to see.
        stop_tokens: end a text.
        description: one line for people.
        run: the run's folder; None for a pretrained model.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    context: int
    stop_tokens: list[int]
    description: str
    run: RunFolder | None = None


def trained(run: str, runs: Path) -> Loaded:
    """The model of a run, from its last checkpoint.

    Raises:
        UserError: no such run, or data that has changed since.
    """
    folder = find_run(run, runs)
    spec, model = load_model(folder)
    prepared = prepare(spec.data)
    check_same_data(folder, prepared.hash)
    check_vocabulary(prepared.tokenizer, spec.model.vocab_size)
    model.eval()
    about = f"{spec.name}, seed {spec.seed}, trained on {spec.data.dataset}"
    return Loaded(model, prepared.tokenizer, spec.seq_len, [], about, folder)


def pretrained(name: str) -> Loaded:
    """glassllm, or the model of a Hugging Face folder or repo, in the type that it was saved in.

    Raises:
        UserError: no such model, or one whose tokenizer is not its own.
    """
    kind, _, language = name.partition(":")
    if kind == "glassllm":
        model, own = load_glassllm(language or "en")
        return Loaded(model, own, model.config.block.max_seq_len, [], f"{name}, 0.85 M parameters")
    fields = read_json(Path(name) / "config.json") if Path(name).is_dir() else {}
    stored = fields.get("dtype", fields.get("torch_dtype"))
    model, config = load_from_hf(name, dtype=mx.float32 if stored == "float32" else mx.float16)
    model.eval()
    tokenizer = load_tokenizer(name if fields else f"hf:{name}")
    check_vocabulary(tokenizer, config.vocab_size)
    end = fields.get("eos_token_id", getattr(tokenizer, "eos_token_id", None))
    stop = [end] if isinstance(end, int) else list(end or [])
    return Loaded(model, tokenizer, config.block.max_seq_len, stop, f"{name}, {model.count_parameters():,} parameters")


def is_pretrained(name: str) -> bool:
    """Whether `name` can only mean a pretrained model: glassllm, or a folder with a Hugging Face config.json."""
    if name.partition(":")[0] == "glassllm":
        return True
    try:
        fields = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "model_type" in fields
