"""Train two mixtures of experts, without and with a balancing bias, and see how even the loads of their experts are.

python recipes/train_moe.py --experts 16 --top-k 4 --steps 500 --dataset my.txt --tokenizer bpe:512
"""

import dataclasses
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core.config import ModelConfig
from lmxlab.core.router import counting, expert_load
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.eval import perplexity
from lmxlab.models.base import evaluating
from lmxlab.models.llama import llama_config


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    experts: int = 8
    """Routed experts in every layer."""
    top_k: int = 2
    """Experts that a token goes through, in `shared_moe` beside the shared one."""
    layers: int = 2
    d_model: int = 64
    """Channels of the model; an expert has as many."""
    balance_step: float = 1e-2
    """How far the balancing biases of `shared_moe` move in a step."""
    steps: int = 150
    batch_size: int = 8
    seq_len: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def mixtures(options: Options, vocab_size: int) -> dict[str, ModelConfig]:
    """One design with two kinds of experts; with the shared one, a token still goes through `top_k` experts."""
    width = options.d_model
    base = llama_config(vocab_size, width, 4, 2, options.layers, width, options.seq_len, tie_embeddings=True)
    routed = {"n_experts": options.experts, "moe_d_ff": width}
    kinds = {
        "moe": {"ffn": "moe", "top_k_experts": options.top_k},
        "shared_moe": {
            "ffn": "shared_moe",
            "top_k_experts": max(1, options.top_k - 1),
            "n_shared_experts": 1,
            "router_balance_step": options.balance_step,
        },
    }
    return {
        name: dataclasses.replace(base, block=dataclasses.replace(base.block, **routed, **kind))
        for name, kind in kinds.items()
    }


def main(options: Options) -> None:
    steps = 3 if options.quick else options.steps
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    shape = options.batch_size, options.seq_len
    # (B, T) inputs and targets shifted by one: together the T + 1 tokens of each window.
    held_out = eval_batches(prepared.val, *shape, 2000 if options.quick else 10000)
    windows = [mx.concatenate([x, y[:, -1:]], axis=1) for x, y in held_out]
    for name, config in mixtures(options, prepared.vocab_size).items():
        mx.random.seed(options.seed)
        model = lmxlab.LanguageModel(config)
        settings = lmxlab.TrainConfig(
            learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
        )
        print(f"{name}: {model.count_parameters():,} parameters, {steps} steps on {prepared.info['source']}")
        losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, *shape, seed=options.seed))
        for step in sorted({*range(0, steps, max(1, steps // 5)), steps - 1}):
            print(f"  step {step + 1:5}  training loss {losses[step]['loss']:.3f}")
        print(f"  perplexity of text that it has not seen {perplexity(model, windows):.2f}")
        with evaluating(model), counting(model):
            for window in windows:
                mx.eval(model(window[:, :-1])[0], model.state)
        print("  share of the choices that each expert got there, in percent, and the largest over the mean")
        for path, load in sorted(expert_load(model).items()):
            shares = " ".join(f"{100 * share:5.1f}" for share in load.tolist())
            print(f"    layer {path.split('.')[1]}: {shares}   {float(load.max()) * options.experts:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
