"""The model class, its families and decoding."""

from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.gpt import gpt_config, gpt_medium, gpt_small, gpt_tiny
from lmxlab.models.llama import llama_7b, llama_13b, llama_config, llama_tiny

__all__ = [
    "LanguageModel",
    "generate",
    "gpt_config",
    "gpt_medium",
    "gpt_small",
    "gpt_tiny",
    "llama_7b",
    "llama_13b",
    "llama_config",
    "llama_tiny",
    "stream_generate",
]
