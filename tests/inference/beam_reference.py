"""Beam search of transformers, in a process of its own as in tests/models/reference.py: `beam_reference.py DIR`."""

import json
import sys
from pathlib import Path

import numpy as np

PROMPT = [5, 17, 3, 29]
SETTINGS = [
    {"num_beams": 4, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 0.0, "eos_token_id": 2},
    {"num_beams": 4, "length_penalty": 1.0, "eos_token_id": 2},
    {"num_beams": 5, "length_penalty": 1.5, "eos_token_id": [2, 7, 11]},
    {"num_beams": 4, "length_penalty": -1.0, "eos_token_id": [2, 7, 11]},
    {"num_beams": 1, "length_penalty": 0.0, "eos_token_id": [2, 7, 11]},
    # Where most tokens end a text, few beams are left to go on, and stopping early changes what is found.
    {"num_beams": 4, "length_penalty": 0.0, "eos_token_id": list(range(2, 22))},
    {"num_beams": 2, "length_penalty": 3.0, "eos_token_id": list(range(2, 22))},
    {"num_beams": 3, "length_penalty": -2.0, "eos_token_id": list(range(2, 22))},
]
NEW_TOKENS = 12


def main(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=31,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(0, 0.15)
        if "norm" in name:
            weight.data.add_(1.0)
    model.save_pretrained(folder)
    found = []
    for settings in SETTINGS:
        options = {"eos_token_id": None} | settings
        out = model.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_return_sequences=settings["num_beams"],
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        scores = getattr(out, "sequences_scores", None)
        found.append(
            {"sequences": out.sequences.tolist(), "scores": None if scores is None else np.array(scores).tolist()}
        )
    (folder / "beams.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
