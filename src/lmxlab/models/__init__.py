"""The model class, its families and decoding."""

from lmxlab.models.base import LanguageModel
from lmxlab.models.convert import config_from_hf, convert_weights, load_from_hf
from lmxlab.models.deepseek import deepseek_config, deepseek_tiny, deepseek_v3_config, deepseek_v3_tiny
from lmxlab.models.deepseek_v32 import deepseek_v32_config, deepseek_v32_tiny
from lmxlab.models.export import export_model
from lmxlab.models.falcon import falcon_h1_config, falcon_h1_tiny
from lmxlab.models.gemma import gemma2_config, gemma2_tiny, gemma_config, gemma_tiny
from lmxlab.models.gemma3 import gemma3_config, gemma3_tiny
from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.gpt import gpt2_config, gpt2_tiny, gpt_config, gpt_medium, gpt_small, gpt_tiny
from lmxlab.models.jamba import jamba_config, jamba_tiny
from lmxlab.models.llama import llama_7b, llama_13b, llama_config, llama_tiny
from lmxlab.models.llama4 import (
    llama4_maverick_config,
    llama4_maverick_tiny,
    llama4_scout_config,
    llama4_scout_tiny,
)
from lmxlab.models.mamba import mamba2_config, mamba2_tiny, mamba_config, mamba_tiny
from lmxlab.models.mistral import mistral_config, mistral_tiny
from lmxlab.models.mixtral import mixtral_config, mixtral_tiny
from lmxlab.models.nemotron import nemotron3_config, nemotron3_tiny
from lmxlab.models.olmo2 import olmo2_config, olmo2_tiny
from lmxlab.models.peft import load_peft_adapters
from lmxlab.models.prompt_cache import load_prompt_cache, save_prompt_cache
from lmxlab.models.qwen import qwen2_config, qwen2_tiny, qwen3_config, qwen3_tiny
from lmxlab.models.qwen3_moe import qwen3_moe_config, qwen3_moe_tiny
from lmxlab.models.qwen3_next import qwen3_next_config, qwen3_next_tiny
from lmxlab.models.qwen35 import qwen35_config, qwen35_tiny
from lmxlab.models.smollm3 import smollm3_config, smollm3_tiny

__all__ = [
    "LanguageModel",
    "config_from_hf",
    "convert_weights",
    "deepseek_config",
    "deepseek_tiny",
    "deepseek_v3_config",
    "deepseek_v3_tiny",
    "deepseek_v32_config",
    "deepseek_v32_tiny",
    "export_model",
    "falcon_h1_config",
    "falcon_h1_tiny",
    "gemma2_config",
    "gemma2_tiny",
    "gemma3_config",
    "gemma3_tiny",
    "gemma_config",
    "gemma_tiny",
    "generate",
    "gpt2_config",
    "gpt2_tiny",
    "gpt_config",
    "gpt_medium",
    "gpt_small",
    "gpt_tiny",
    "jamba_config",
    "jamba_tiny",
    "llama4_maverick_config",
    "llama4_maverick_tiny",
    "llama4_scout_config",
    "llama4_scout_tiny",
    "llama_7b",
    "llama_13b",
    "llama_config",
    "llama_tiny",
    "load_from_hf",
    "load_peft_adapters",
    "load_prompt_cache",
    "mamba2_config",
    "mamba2_tiny",
    "mamba_config",
    "mamba_tiny",
    "mistral_config",
    "mistral_tiny",
    "mixtral_config",
    "mixtral_tiny",
    "nemotron3_config",
    "nemotron3_tiny",
    "olmo2_config",
    "olmo2_tiny",
    "qwen2_config",
    "qwen2_tiny",
    "qwen3_config",
    "qwen3_moe_config",
    "qwen3_moe_tiny",
    "qwen3_next_config",
    "qwen3_next_tiny",
    "qwen3_tiny",
    "qwen35_config",
    "qwen35_tiny",
    "save_prompt_cache",
    "smollm3_config",
    "smollm3_tiny",
    "stream_generate",
]
