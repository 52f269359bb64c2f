"""A model to look at, wherever it comes from: a run's folder, or a folder in the layout of Hugging Face."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from lmxlab.cli.runs import find_run
from lmxlab.data import Tokenizer, check_vocabulary, load_tokenizer, prepare
from lmxlab.experiments.stored import check_same_data, load_model
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import load_from_hf
from lmxlab.training.run_folder import RunFolder


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    Attributes:
        context: tokens that it reads at once.
        bos_id: what its config.json says; None: what the tokenizer says.
        stop_ids: what its config.json says of the tokens that end a text.
        run: the run's folder, None for a model from elsewhere.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    context: int
    bos_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    run: RunFolder | None = None


def load(name: str, runs: Path) -> Loaded:
    """The model that `name` means: a folder with a Hugging Face config.json, else a run, as `find_run` finds it.

    Raises:
        UserError: no such model, or one whose tokenizer is not its own.
    """
    fields = hf_fields(Path(name))
    if fields is not None:
        model, config = load_from_hf(name, dtype=mx.float32)
        tokenizer: Tokenizer = load_tokenizer(name)
        check_vocabulary(tokenizer, config.vocab_size)
        bos, eos = fields.get("bos_token_id"), fields.get("eos_token_id")
        stop = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
        return Loaded(name, model, tokenizer, config.block.max_seq_len, bos, stop)
    folder = find_run(name, runs)
    spec, model = load_model(folder)
    prepared = prepare(spec.data)
    check_same_data(folder, prepared)
    check_vocabulary(prepared.tokenizer, spec.model.vocab_size)
    return Loaded(spec.name, model, prepared.tokenizer, spec.seq_len, run=folder)


def hf_fields(folder: Path) -> dict[str, Any] | None:
    """config.json of a folder in the layout of Hugging Face; None for any other folder."""
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) and "model_type" in fields else None
