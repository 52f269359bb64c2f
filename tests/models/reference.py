"""The reference models of transformers, run in a process of their own: `python reference.py SPEC.json`.

PyTorch's batched products crash in a process whose global BLAS is the one that lmxlab loads for MLX, so the two
libraries meet only in files: each case's folder gets the model (save_pretrained) and `expected.npz`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "llama4_text": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen3_5_text": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "falcon_h1": ("FalconH1Config", "FalconH1ForCausalLM"),
    "jamba": ("JambaConfig", "JambaForCausalLM"),
    "nemotron_h": ("NemotronHConfig", "NemotronHForCausalLM"),
    "mamba": ("MambaConfig", "MambaForCausalLM"),
    "mamba2": ("Mamba2Config", "Mamba2ForCausalLM"),
}
PLUS_ONE = ("gemma", "qwen3_5", "qwen3_next")  # whose norms scale by 1 + weight
LENGTHS = (1, 12, 40)


def run_case(folder: Path, kind: str, fields: dict[str, Any]) -> None:
    import torch
    import transformers

    config_class, model_class = CLASSES[kind]
    config = getattr(transformers, config_class)(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(0, 0.6 if "conv" in name else 0.15)  # few taps each: else they make everything small
        if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
            plus_one = kind.startswith(PLUS_ONE) and "linear_attn" not in name
            weight.data.add_(0.0 if plus_one else 1.0)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.15)
    model.save_pretrained(folder)
    draw = np.random.default_rng(0).integers
    arrays = {}
    with torch.no_grad():
        for length in LENGTHS:
            x = draw(0, config.vocab_size, (2, length))
            arrays |= {f"x{length}": x, f"logits{length}": model(torch.tensor(x)).logits.numpy()}
        prompt = torch.tensor(draw(3, config.vocab_size, (2, 6)))
        settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        model.generation_config.eos_token_id = None
        arrays["greedy"] = model.generate(prompt, **settings).numpy()
        arrays["penalised"] = model.generate(prompt, repetition_penalty=1.7, **settings).numpy()
    np.savez(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    for path, (kind, fields) in json.loads(Path(sys.argv[1]).read_text()).items():
        run_case(Path(path), kind, fields)
