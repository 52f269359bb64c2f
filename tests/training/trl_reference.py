"""TRL's own DPO and GRPO losses over a tiny Llama, in a process of its own: `python trl_reference.py FOLDER`.

FOLDER gets the policy and the reference (`policy`, `reference`), the batches, and for each case the loss and the
gradient of every parameter. The losses are the methods of TRL's trainers, called on an object that has only the
attributes that they read.
"""

import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CONFIG = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
# name: (beta, the objective's options)
DPO_CASES: dict[str, tuple[float, dict[str, Any]]] = {
    "sigmoid": (0.1, {}),
    "sigmoid strong": (0.7, {}),
    "robust": (0.3, {"label_smoothing": 0.2}),
    "hinge": (0.1, {}),
    "ipo": (0.4, {}),
    "sigmoid_norm": (0.5, {}),
    "exo_pair": (0.3, {"label_smoothing": 0.1}),
    "nca_pair": (0.2, {}),
    "bco_pair": (0.2, {}),
    "sppo_hard": (0.6, {}),
    "apo_zero": (0.2, {}),
    "apo_down": (0.2, {}),
    "discopop": (0.1, {}),
    "sigmoid forward_kl": (0.05, {"divergence": "forward_kl"}),
    "sigmoid js": (0.3, {"divergence": "js"}),
    "sigmoid nll": (0.3, {"nll_weight": 0.4}),
}
GRPO_CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "grpo without penalty": {"beta": 0.0},
    "grpo on policy": {"on_policy": True},
    "grpo hot": {"temperature": 0.7},
    "grpo two-sided": {"delta": 1.5},
    "grpo by sequence": {"ratio": "sequence", "epsilon": 0.02},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo", "max_tokens": 12},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.1},
}
BETA, EPSILON = 0.1, 0.2
PROMPT, GROUPS = 5, 2


def make_batches() -> dict[str, np.ndarray]:
    """Pairs and groups of completions of different lengths; padding is token 0, on the right."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for name in ("chosen", "rejected"):
        tokens, mask = np.zeros((4, 14), np.int64), np.zeros((4, 14), np.int64)
        prompts = np.random.default_rng(1).integers(3, 61, (4, 14))
        for i, (start, end) in enumerate(zip((3, 5, 2, 6), draw.integers(8, 15, 4), strict=True)):
            tokens[i, :end] = draw.integers(3, 61, end)
            tokens[i, :start] = prompts[i, :start]
            mask[i, start:end] = 1
        arrays |= {name: tokens, f"{name}_mask": mask}
    completions = np.concatenate([np.repeat(draw.integers(3, 61, (GROUPS, PROMPT)), 3, 0), np.zeros((6, 9), int)], 1)
    mask = np.zeros((6, 9), np.int64)
    for i, length in enumerate((9, 4, 7, 1, 9, 6)):
        completions[i, PROMPT : PROMPT + length] = draw.integers(3, 61, length)
        mask[i, :length] = 1
    rewards = np.array([1.0, 0.0, 0.3, 2.0, 2.0, -1.0], np.float32)
    return arrays | {"completions": completions, "completion_mask": mask, "rewards": rewards}


def make_model(folder: Path, seed: int) -> Any:
    import torch
    import transformers
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**CONFIG, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        weight.data.normal_(0, 0.15)
        if "norm" in name:
            weight.data.add_(1.0)
    model.save_pretrained(folder)
    model.plain_forward = model.forward
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"))
    return model


def alone() -> Any:
    """An accelerator of one process."""
    from contextlib import nullcontext

    same = lambda x, **_: x  # noqa: E731
    return SimpleNamespace(
        **{"gather": same, "gather_for_metrics": same, "reduce": same, "autocast": nullcontext},
        **{"device": "cpu", "num_processes": 1, "is_main_process": False},
    )


def gradients(model: Any, loss: Any) -> dict[str, np.ndarray]:
    model.zero_grad()
    loss.backward()
    found = {f"gradient {name}": w.grad.numpy().copy() for name, w in model.named_parameters() if w.grad is not None}
    return found | {"loss": loss.detach().numpy()}


def run_dpo(policy: Any, reference: Any, batches: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    import torch
    from trl import DPOTrainer

    tokens = torch.tensor(np.concatenate([batches["chosen"], batches["rejected"]]))
    mask = torch.tensor(np.concatenate([batches["chosen_mask"], batches["rejected_mask"]]))
    inputs = {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "completion_mask": mask}
    results = {}
    for case, (beta, options) in DPO_CASES.items():
        kind = {"forward_kl": "forward_kl", "js": "js_divergence"}.get(options.get("divergence", ""), "reverse_kl")
        trainer = SimpleNamespace(
            **{"model": policy, "ref_model": reference, "beta": beta, "loss_types": [case.split()[0], "sft"]},
            **{
                "loss_weights": [1.0, options.get("nll_weight", 0.0)],
                "label_smoothing": options.get("label_smoothing", 0.0),
                "ld_alpha": None,
            },
            **{"f_divergence_type": kind, "aux_loss_enabled": False, "use_weighting": False, "_tp_size": 1},
            **{"precompute_ref_logps": False, "accelerator": alone(), "_total_train_tokens": 0},
            args=SimpleNamespace(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
            _metrics={mode: defaultdict(list) for mode in ("train", "eval")},
        )
        n_pairs = len(tokens) // 2
        # The mean over tokens of TRL's "sft" is that of a completion only where the batch is one pair.
        parts = [[i, i + n_pairs] for i in range(n_pairs)] if "nll_weight" in options else [slice(None)]
        losses = [
            DPOTrainer._compute_loss(trainer, policy, {name: array[part] for name, array in inputs.items()}, False)
            for part in parts
        ]
        results[f"dpo {case}"] = gradients(policy, sum(losses) / len(losses))
        told = trainer._metrics["eval"]
        for ours, theirs in (("chosen_reward", "chosen"), ("rejected_reward", "rejected")):
            results[f"dpo {case}"][ours] = np.mean(told[f"rewards/{theirs}"])
        results[f"dpo {case}"]["accuracy"] = np.mean(told["rewards/accuracies"])
    return results


def run_grpo(
    policy: Any, reference: Any, sampler: Any, batches: dict[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    import torch
    from trl import GRPOTrainer
    from trl.trainer.utils import add_fused_lm_head, nanstd

    tokens, mask = torch.tensor(batches["completions"]), torch.tensor(batches["completion_mask"])
    grouped = torch.tensor(batches["rewards"]).view(GROUPS, -1)
    std = nanstd(grouped, dim=1)[:, None]
    advantages = ((grouped - grouped.mean(1, keepdim=True)) / (std + 1e-4)).flatten()
    results: dict[str, dict[str, np.ndarray]] = {}
    for case, options in GRPO_CASES.items():
        for model in (policy, reference, sampler):
            model.forward = model.plain_forward
            add_fused_lm_head(model, temperature=options.get("temperature", 1.0), outputs=("log_probs", "entropy"))
        epsilon = options.get("epsilon", EPSILON)
        trainer = SimpleNamespace(
            **{"model": policy, "beta": options.get("beta", BETA), "epsilon_low": epsilon},
            **{"epsilon_high": options.get("epsilon_high", epsilon), "loss_type": options.get("loss_type", "grpo")},
            **{"importance_sampling_level": options.get("ratio", "token"), "top_entropy_quantile": 1.0},
            **{"off_policy_mask_threshold": None, "use_vllm": False, "aux_loss_enabled": False},
            **{"_entropy_bonus_enabled": False, "max_completion_length": options.get("max_tokens")},
            **{"accelerator": alone(), "current_gradient_accumulation_steps": 1},
            args=SimpleNamespace(delta=options.get("delta"), use_bias_correction_kl=False, steps_per_generation=1),
            _metrics={mode: defaultdict(list) for mode in ("train", "eval")},
        )
        trainer._get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies.__get__(trainer)
        attention = torch.cat([torch.ones_like(tokens[:, :PROMPT]), mask], dim=1)
        logprobs = {}
        with torch.no_grad():
            for name, model in (("sampled", sampler), ("reference", reference)):
                scored = trainer._get_per_token_logps_and_entropies(model, tokens, attention, mask.shape[1])
                logprobs[name] = scored[0]
        inputs = {
            **{"prompt_ids": tokens[:, :PROMPT], "prompt_mask": torch.ones_like(tokens[:, :PROMPT])},
            **{"completion_ids": tokens[:, PROMPT:], "completion_mask": mask, "advantages": advantages},
            **{"ref_per_token_logps": logprobs["reference"], "num_items_in_batch": mask.sum()},
            "old_per_token_logps": None if options.get("on_policy") else logprobs["sampled"],
        }
        found = gradients(policy, GRPOTrainer._compute_loss(trainer, policy, inputs))
        results[f"grpo {case}"] = found | {name: array.numpy() for name, array in logprobs.items()}
        told = trainer._metrics["eval"]
        if "kl" in told:
            results[f"grpo {case}"]["kl"] = np.array(told["kl"][0])
        if "clip_ratio/region_mean" in told:
            results[f"grpo {case}"]["clipped"] = np.array(told["clip_ratio/region_mean"][0])
    return results | {"advantages": {"advantages": advantages.numpy()}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    policy, reference, sampler = (
        make_model(folder / name, seed) for seed, name in enumerate(("policy", "reference", "sampler"))
    )
    for mine, theirs in zip(sampler.parameters(), policy.parameters(), strict=True):
        mine.data = theirs.data + 0.02 * mine.data.sign()  # near enough that some ratios are clipped and some are not
    batches = make_batches()
    np.savez(folder / "batches.npz", **batches)
    results = run_dpo(policy, reference, batches) | run_grpo(policy, reference, sampler, batches)
    for case, arrays in results.items():
        np.savez(folder / f"{case}.npz", **arrays)
