"""Train with every instrument on, and see the run in numbers and pictures.

python recipes/train_with_callbacks.py --arch gpt_tiny --steps 300 --every 50
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.analysis import ActivationCapture, extract_attention_maps
from lmxlab.analysis.plotting import plot_attention_heatmap, plot_gradient_flow, plot_layer_norms, plot_loss_curves
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.models.families import resolve
from lmxlab.training import (
    ActivationStatsCallback,
    AttentionEntropyCallback,
    EffectiveRankCallback,
    GradientNoiseScaleCallback,
    GradientStatsCallback,
    LossCurvatureCallback,
    WeightStatsCallback,
    standard_callbacks,
)
from lmxlab.training.objective import next_token

COLUMNS = {
    "loss": "loss",
    "exp_grad_norm_mean": "gradient",
    "exp_grad_noise_scale": "unsteady",
    "exp_simple_noise_scale": "noise scale",
    "exp_weight_delta": "weights",
    "exp_act_norm_ratio": "act. ratio",
    "exp_attn_entropy_mean": "entropy",
    "exp_effective_rank_mean": "eff. rank",
}


@dataclass
class Options:
    arch: str = "llama_tiny"
    """A preset or an architecture of `lmxlab list`."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    steps: int = 200
    """Training steps of 16 x 64 tokens."""
    every: int = 20
    """Steps between two looks into the model."""
    learning_rate: float = 3e-3
    output: Path = Path("instruments")
    """Folder for the pictures."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, every = (4, 2) if options.quick else (options.steps, options.every)
    options.output.mkdir(parents=True, exist_ok=True)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size))
    val = list(eval_batches(prepared.val, 16, 64, 4 * 16 * 64))
    probe = val[0]

    gradients = GradientStatsCallback(model, next_token, log_interval=every)
    gradients.set_probe_batch(probe)
    callbacks = [
        gradients,
        GradientNoiseScaleCallback(model, next_token, probe, eval_interval=every),
        WeightStatsCallback(model, log_interval=every),
        ActivationStatsCallback(model, probe[0], eval_interval=every),
        AttentionEntropyCallback(model, probe[0], eval_interval=every),
        LossCurvatureCallback(window_size=20),
        EffectiveRankCallback(model, eval_interval=every),
        *standard_callbacks(
            log_interval=10**9, tokens_per_step=16 * 64, model=model, val_batches=val, eval_interval=every
        ),
    ]
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    trainer = lmxlab.Trainer(model, settings, callbacks=callbacks)
    history = trainer.train(TokenBatches(prepared.train, 16, 64, seed=options.seed))

    print(f"\n{'step':>5}" + "".join(f"{name:>12}" for name in COLUMNS.values()))
    for step in range(every, steps + 1, every):
        row = history[step - 1]
        print(f"{step:>5}" + "".join(f"{row[key]:>12.3f}" if key in row else f"{'-':>12}" for key in COLUMNS))
    print("\nnoise scale: batch size in rows at which gradient and noise are equally large (this run's: 16);")
    print("entropy: of attention, in nats; eff. rank: of the weight matrices; unsteady: std / mean of gradient norms")

    pictures = {
        "loss": plot_loss_curves([m["loss"] for m in history], [m["val_loss"] for m in history if "val_loss" in m]),
        "gradient_flow": plot_gradient_flow(model, "Gradients at the end, by layer", batch=probe),
    }
    with ActivationCapture(model) as capture:
        model(probe[0])
    pictures["layer_norms"] = plot_layer_norms(capture.activations)
    maps = extract_attention_maps(model, probe[0][:1, :32])
    for name in list(maps)[-1:]:
        pieces = [prepared.tokenizer.decode([token]) for token in probe[0][0, :32].tolist()]
        pictures["attention"] = plot_attention_heatmap(maps[name], pieces, layer=int(name.removeprefix("layer_")))
    for name, figure in pictures.items():
        figure.savefig(options.output / f"{name}.png")
    print(f"pictures: {', '.join(f'{name}.png' for name in pictures)} in {options.output}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
