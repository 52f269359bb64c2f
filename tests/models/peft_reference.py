"""peft over tiny models of transformers, in a process of its own: `python peft_reference.py FOLDER`.

Each case's folder gets the base model, the adapter, and `expected.npz`: tokens, logits, the loss, and the gradient of
every trained array.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

LLAMA = {
    **{"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "tie_word_embeddings": True}
ATTENTION = ["q_proj", "v_proj"]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lora": ("Llama", LLAMA, {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    "rslora": ("Llama", LLAMA, {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": "all-linear"}),
    "dora": ("Llama", LLAMA, {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": "all-linear"}),
    "patterns": (
        "Llama",
        LLAMA | {"attention_bias": True},
        {"r": 4, "lora_alpha": 8, "target_modules": [*ATTENTION, "down_proj", "lm_head"]}
        | {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 5, "down_proj": 7}},
    ),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 16}, {"r": 2, "lora_alpha": 8, "target_modules": "all-linear"}),
    "gpt2": (
        "GPT2",
        GPT2,
        {"r": 3, "lora_alpha": 6, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "c_fc"]},
    ),
    "gpt2 dora": (
        "GPT2",
        GPT2,
        {"r": 3, "lora_alpha": 6, "fan_in_fan_out": True, "use_dora": True, "target_modules": ["c_attn", "c_fc"]},
    ),
}


def run_case(folder: Path, family: str, fields: dict[str, Any], adapter: dict[str, Any]) -> None:
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**fields, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    base = getattr(transformers, f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config).eval()
    for name, weight in base.named_parameters():
        weight.data.normal_(0, 0.15)
        if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
            weight.data.add_(1.0)
    base.save_pretrained(folder)
    model = peft.get_peft_model(base, peft.LoraConfig(**adapter)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.2)
        elif "magnitude" in name:
            weight.data.mul_(torch.rand_like(weight) + 0.5)
    model.save_pretrained(folder / "adapter")
    x = np.random.default_rng(0).integers(0, config.vocab_size, (2, 12))
    out = model(torch.tensor(x), labels=torch.tensor(x))
    out.loss.backward()
    arrays = {
        f"gradient {name.replace('.default', '')}": weight.grad.numpy()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    arrays |= {"x": x, "logits": out.logits.detach().numpy(), "loss": out.loss.detach().numpy()}
    np.savez(folder / "expected.npz", **arrays)


if __name__ == "__main__":
    for case, definition in CASES.items():
        run_case(Path(sys.argv[1]) / case, *definition)
