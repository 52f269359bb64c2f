"""The pretrained model that needs no network: 0.85 M parameters, inside the glassllm wheel (MIT), read as a LLaMA.

The wheel has two, of English and of Portuguese prose, each trained on 0.23 M tokens: enough to write words and phrases,
and to try fine-tuning, quantising, speculation and export on weights that are not random. Its files are read; its code,
which is numpy, is not imported.
"""

import dataclasses
import importlib.util
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from lmxlab.core.config import ModelConfig
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import shapes_of
from lmxlab.models.llama import llama_config
from lmxlab.models.weight_map import Shape, Transpose, per_layer, rename, rule, transfers

LANGUAGES = ("en", "pt")
INSTALL = "pip install --no-deps glassllm==0.1.0"


class Deinterleave:
    """Its heads rotate neighbouring channels (0, 1), (2, 3), ...; ours, the two halves: rows change places."""

    def __init__(self, head_dim: int):
        self.head_dim = head_dim

    def to_ours(self, arrays: list[mx.array], shapes: list[Shape]) -> list[mx.array]:
        return [self._swap(array, (self.head_dim // 2, 2)) for array in arrays]

    def to_theirs(self, arrays: list[mx.array], n_theirs: int) -> list[mx.array]:
        return [self._swap(array, (2, self.head_dim // 2)) for array in arrays]

    def _swap(self, array: mx.array, pairs: tuple[int, int]) -> mx.array:
        return array.reshape(-1, *pairs, array.shape[1]).swapaxes(1, 2).reshape(array.shape)


def load_glassllm_model(language: str = "en", dtype: mx.Dtype = mx.float32) -> LanguageModel:
    """The pretrained model of a language; `lmxlab.data.glassllm.load_glassllm` gives its tokenizer, too.

    Raises:
        UserError: no such language, or glassllm is not installed.
    """
    with np.load(weights_folder(language) / f"{language}.npz") as file:
        arrays = {name: mx.array(file[name]) for name in file.files if name != "__config__"}
        config = _config(json.loads(str(file["__config__"])), d_ff=arrays["blocks.0.ffn.W1"].shape[1])
    head_dim = int(config.block.head_dim)
    rules = [
        *rename({"E": "embed.weight", "norm_f.gamma": "final_norm.weight"}),
        *per_layer(
            "blocks.{i}.",
            [
                *rename({"norm1.gamma": "attn_norm.weight", "norm2.gamma": "ffn_norm.weight"}),
                rule("attn.W_Q", "attention.q_proj.weight", Transpose(1, 0), Deinterleave(head_dim)),
                rule("attn.W_K", "attention.k_proj.weight", Transpose(1, 0), Deinterleave(head_dim)),
                rule("attn.W_V", "attention.v_proj.weight", Transpose(1, 0)),
                rule("attn.W_O", "attention.o_proj.weight", Transpose(1, 0)),
                rule("ffn.W1", "ffn.gate.weight", Transpose(1, 0)),
                rule("ffn.W3", "ffn.up.weight", Transpose(1, 0)),
                rule("ffn.W2", "ffn.down.weight", Transpose(1, 0)),
            ],
        ),
    ]
    model = LanguageModel(config)
    for transfer in transfers(rules, shapes_of(model), config):
        weights = transfer.to_ours(arrays.__getitem__)
        model.update(tree_unflatten([(name, array.astype(dtype)) for name, array in weights.items()]))
    mx.eval(model.parameters())
    model.eval()
    return model


def weights_folder(language: str) -> Path:
    """Where the wheel keeps its weights and tokenizers."""
    if language not in LANGUAGES:
        raise UnknownNameError("language of glassllm", language, LANGUAGES)
    spec = importlib.util.find_spec("glassllm")
    places = list(spec.submodule_search_locations or []) if spec else []
    folder = Path(places[0], "weights") if places else None
    if folder is None or not (folder / f"{language}.npz").is_file():
        raise UserError(f"the model glassllm is read from the package of that name, which is not installed: {INSTALL}")
    return folder


def _config(theirs: dict[str, float], d_ff: int) -> ModelConfig:
    sizes = {name: int(theirs[name]) for name in ("vocab_size", "d_model", "n_heads", "n_kv_heads", "n_layers")}
    rope = {"max_seq_len": int(theirs["max_len"]), "rope_theta": theirs["rope_base"]}
    config = llama_config(**sizes, **rope, d_ff=d_ff, tie_embeddings=True)  # type: ignore[arg-type]
    return dataclasses.replace(config, block=dataclasses.replace(config.block, norm_eps=theirs["eps"]))
