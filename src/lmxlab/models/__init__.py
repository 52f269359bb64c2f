"""The model class, its families and decoding."""

from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import config_from_hf, convert_weights, load_from_hf
from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.gpt import gpt_config, gpt_medium, gpt_small, gpt_tiny
from lmxlab.models.llama import llama_7b, llama_13b, llama_config, llama_tiny

__all__ = [
    "LanguageModel",
    "config_from_hf",
    "convert_weights",
    "generate",
    "gpt_config",
    "gpt_medium",
    "gpt_small",
    "gpt_tiny",
    "llama_7b",
    "llama_13b",
    "llama_config",
    "llama_tiny",
    "load_from_hf",
    "stream_generate",
]
