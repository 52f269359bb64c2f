"""lm-eval's own HFLM on a tiny Llama, in a process of its own: `python hflm.py FOLDER`.

The folder has a tokenizer and `tasks/`; it gets the model (save_pretrained) and `answers.json`.
"""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    import lm_eval
    import torch
    import transformers
    from lm_eval.tasks import TaskManager

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.LlamaConfig(
        vocab_size=320, num_key_value_heads=2, max_position_embeddings=48, tie_word_embeddings=False, **sizes, **ids
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(0, 0.15).add_(1.0 if "norm" in name else 0.0)
    model.save_pretrained(folder)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=json.loads((folder / "names.json").read_text()),
        task_manager=manager,
        batch_size=3,
        device="cpu",
        bootstrap_iters=100,
    )
    answers = {
        "results": found["results"],
        "resps": {
            name: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
            for name, samples in found["samples"].items()
        },
    }
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
