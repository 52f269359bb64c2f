"""A model to use or to start from, wherever it comes from: a run, glassllm, a folder or repo of Hugging Face."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx

from lmxlab.core.config import ModelConfig
from lmxlab.data.examples import ends_of_completion
from lmxlab.data.glassllm import load_glassllm
from lmxlab.data.tokenizer import CorpusTokenizer, Tokenizer, check_vocabulary, load_tokenizer
from lmxlab.errors import UserError
from lmxlab.experiments.finetune import put_adapters
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import load_model, read_spec
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import config_from_hf, load_from_hf
from lmxlab.models.glassllm import load_glassllm_model
from lmxlab.models.weight_files import read_json
from lmxlab.training.run_folder import RunFolder

GLASSLLM = "glassllm"


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


def trained(folder: RunFolder) -> Loaded:
    """The model of a run, from its last checkpoint, with the tokenizer that the run was started with.

    Raises:
        UserError: no checkpoint or tokenizer in the folder.
    """
    spec, model = load_model(folder)
    tokenizer = run_tokenizer(folder)
    check_vocabulary(tokenizer, spec.model.vocab_size)
    model.eval()
    about = f"{spec.name}, seed {spec.seed}, trained on {spec.data.dataset}"
    ends = [] if spec.method.of_text else ends_of_completion(tokenizer)
    return Loaded(model, tokenizer, spec.seq_len, ends, about, folder)


def run_tokenizer(folder: RunFolder) -> CorpusTokenizer:
    """The tokenizer that a run was started with; UserError when its folder has none."""
    if not folder.tokenizer.is_file():
        raise UserError(f"{folder.path} has no tokenizer.json, which runs keep: it is damaged, or of an older version.")
    return load_tokenizer(folder.tokenizer)


def pretrained(name: str) -> Loaded:
    """glassllm, or the model of a Hugging Face folder or repo, in the type that it was saved in.

    Raises:
        UserError: no such model, or one whose tokenizer is not its own.
    """
    kind, _, language = name.partition(":")
    if kind == GLASSLLM:
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
    if name.partition(":")[0] == GLASSLLM:
        return True
    try:
        fields = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "model_type" in fields


def base_config(source: str) -> ModelConfig:
    """The config of a model to start from: glassllm, a folder in Hugging Face's layout, or a run's folder."""
    if source.partition(":")[0] == GLASSLLM:
        return load_glassllm_model().config
    folder = _base_folder(source)
    return (
        config_from_hf(read_json(folder / "config.json"))
        if is_pretrained(source)
        else read_spec(RunFolder(folder)).model
    )


def base_tokenizer(source: str) -> str:
    """What `DataConfig.tokenizer` is for the tokenizer of a model to start from."""
    if source.partition(":")[0] == GLASSLLM:
        return source
    folder = _base_folder(source)
    return str(folder) if is_pretrained(str(folder)) else str(RunFolder(folder).tokenizer)


def base_model(source: str) -> LanguageModel:
    """A model to start from, in float32."""
    kind, _, language = source.partition(":")
    if kind == GLASSLLM:
        return load_glassllm_model(language or "en")
    folder = _base_folder(source)
    if is_pretrained(str(folder)):
        return load_from_hf(str(folder), dtype=mx.float32)[0]
    spec, model = load_model(RunFolder(folder))
    if not spec.lora.rank:
        return model
    # Adapters leave the weights that they were folded into frozen: what trains is what trains in a new model.
    return cast(LanguageModel, LanguageModel(spec.model).update(model.parameters()))


def build_model(spec: RunSpec) -> LanguageModel:
    """The untrained model of a run: its weights depend on the seed, the config and the model it starts from alone."""
    mx.random.seed(spec.seed)
    if spec.pretrained and not spec.model.mtp_n_predict:
        model = base_model(spec.pretrained)
    else:
        model = LanguageModel(spec.model)
    if spec.pretrained and spec.model.mtp_n_predict:  # the prediction heads begin anew
        model.update(base_model(spec.pretrained).parameters())
    put_adapters(model, spec.lora)
    mx.eval(model.parameters())
    return model


def _base_folder(source: str) -> Path:
    folder = Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"pretrained is {source!r}: give {GLASSLLM}, a folder with config.json and safetensors (download a repo "
            "first), or the folder of a run."
        )
    return folder
