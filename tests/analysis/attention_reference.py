"""Attention maps of transformers' eager models, in a process of their own: `python attention_reference.py SPEC.json`.

As tests/models/reference.py: the libraries meet in files only. The folder gets the model and `maps.npz`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "llama4_text": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM"),
}
LENGTH = 20


def run_case(folder: Path, kind: str, fields: dict[str, Any]) -> None:
    import torch
    import transformers

    config_class, model_class = CLASSES[kind]
    config = getattr(transformers, config_class)(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:  # larger than at initialisation, so that heads look at some tokens more than at others
            weight.data.normal_(0, 0.6 if "conv" in name else 0.25)
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, LENGTH))
    with torch.no_grad():
        maps = model(torch.tensor(tokens), output_attentions=True).attentions
    found = {f"layer_{i}": map_.float().numpy() for i, map_ in enumerate(maps) if map_ is not None}
    np.savez(folder / "maps.npz", tokens=tokens, **found)


if __name__ == "__main__":
    for path, (kind, fields) in json.loads(Path(sys.argv[1]).read_text()).items():
        run_case(Path(path), kind, fields)
