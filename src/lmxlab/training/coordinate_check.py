"""The coordinate check of muP: do activations keep their size when the model gets wider?"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from lmxlab.analysis.activations import ActivationCapture
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.training.config import TrainConfig
from lmxlab.training.trainer import Trainer

ALLOWED_CHANGE = 0.2
# What grows in proportion to the width; the number of heads, experts and groups, and state sizes stay.
WIDTHS = (
    *("d_model", "d_ff", "moe_d_ff", "shared_expert_d_ff", "moe_latent_size", "kv_lora_rank", "q_lora_rank"),
    *("head_dim", "rope_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "mamba_head_dim"),
    *("linear_key_head_dim", "linear_value_head_dim"),
)
BATCH = (8, 32)


@dataclass(frozen=True)
class CoordinateCheck:
    """Root mean squares of activations of models of several widths, while they train.

    Attributes:
        widths: d_model of the models, ascending.
        places: "layer_N/output" of every layer, and "logits".
        rms: (n_widths, steps + 1, n_places), from initialisation to after the last step, means over seeds.
    """

    widths: tuple[int, ...]
    places: tuple[str, ...]
    rms: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        """(n_widths, n_places): after the last step, relative to the narrowest model, less 1."""
        last = self.rms[:, -1]
        relative: np.ndarray = last / last[0] - 1
        return relative

    @property
    def worst(self) -> tuple[str, int, float]:
        """Place, width and change where a model is furthest from the narrowest one; NaN counts as infinitely far."""
        changes = np.nan_to_num(self.changes, nan=np.inf, posinf=np.inf)
        width, place = np.unravel_index(np.abs(changes).argmax(), changes.shape)
        return self.places[place], self.widths[width], float(changes[width, place])

    @property
    def passed(self) -> bool:
        """Whether no activation and no logit changes by 20% or more."""
        return abs(self.worst[2]) < ALLOWED_CHANGE


def coordinate_check(
    config: ModelConfig,
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    mup: bool = True,
    steps: int = 10,
    learning_rate: float = 2e-3,
    seeds: int = 2,
    optimizer: str = "adamw",
) -> CoordinateCheck:
    """Trains a model of each width for a few steps and looks how large its activations are (2203.03466, section D.1).

    Under muP they keep their size, so that what is a good learning rate for a narrow model is one for a wide one; in
    the standard parametrisation they grow with the width. A large learning rate blurs the picture, since then even
    narrow models leave the regime in which a step changes little.

    Args:
        config: the model, whose width and what goes with it (see `widened`) is changed.
        widths: at least two; the narrowest is muP's base width.
        mup: False for the standard parametrisation.

    Raises:
        UserError: fewer than two widths.
    """
    widths = tuple(sorted(set(widths)))
    if len(widths) < 2 or steps < 1 or seeds < 1:
        raise UserError(f"A coordinate check compares at least 2 widths over at least 1 step and seed, got {widths}")
    base = widths[0] if mup else None
    rms = [
        np.mean([_run(widened(config, width, base), steps, learning_rate, seed, optimizer) for seed in range(seeds)], 0)
        for width in widths
    ]
    places = (*(f"layer_{i}/output" for i in range(config.n_layers)), "logits")
    return CoordinateCheck(widths, places, np.array(rms))


def widened(config: ModelConfig, width: int, mup_base_width: int | None = None) -> ModelConfig:
    """The same architecture `width` wide: FFN, heads and latents grow in proportion, their numbers stay.

    Args:
        mup_base_width: makes it a muP model with this base.

    Raises:
        UserError: a dimension that would not be whole.
    """
    factor = width / config.block.d_model

    def wider(block: BlockConfig) -> BlockConfig:
        changes: dict[str, object] = {"mup": mup_base_width is not None}
        for name in WIDTHS:
            value = getattr(block, name)
            if value is None or name == "head_dim" and value * block.n_heads == block.d_model:
                continue  # derived from what is changed
            if (value * factor) % 1:
                raise UserError(f"width {width} would make {name} {value * factor:g}; choose a multiple of it")
            changes[name] = int(value * factor)
        return dataclasses.replace(block, **changes)  # type: ignore[arg-type]

    # Embeddings that are scaled by the root of the width (Vaswani et al. 2017) would grow with it under muP.
    rooted = math.isclose(config.embed_scale, math.sqrt(config.block.d_model), rel_tol=1e-6)
    scale = math.sqrt(mup_base_width or width) if rooted else config.embed_scale
    layers = None if config.block_configs is None else tuple(wider(block) for block in config.block_configs)
    return dataclasses.replace(
        config, block=wider(config.block), block_configs=layers, mup_base_width=mup_base_width, embed_scale=scale
    )


def _run(config: ModelConfig, steps: int, learning_rate: float, seed: int, optimizer: str) -> np.ndarray:
    """(steps + 1, n_places) root mean squares of one model on the batch that it trains on."""
    mx.random.seed(seed)
    model = LanguageModel(config)
    settings = TrainConfig(
        learning_rate=learning_rate, weight_decay=0.0, warmup_steps=0, lr_schedule="constant", max_steps=steps,
        max_grad_norm=0.0, optimizer=optimizer, compile_step=False,
    )  # fmt: skip
    trainer = Trainer(model, settings)
    x, y = _batch(config.vocab_size)
    rows = [_measured(model, x)]
    for _ in range(steps):
        trainer.train_step((x, y))
        rows.append(_measured(model, x))
    return np.array(rows)


def _measured(model: LanguageModel, x: mx.array) -> list[float]:
    with ActivationCapture(model, places=("output",)) as capture:
        logits, _ = model(x)
    arrays = [capture.activations[f"layer_{i}/output"] for i in range(len(model.blocks))]
    squares: list[float] = mx.stack([mx.square(a.astype(mx.float32)).mean() for a in (*arrays, logits)]).tolist()  # type: ignore[assignment]
    return [math.sqrt(square) for square in squares]


def _batch(vocab_size: int) -> tuple[mx.array, mx.array]:
    """Tokens as frequent as words are (Zipf), the same ones for every model: there is something to learn at once."""
    weights = 1 / np.arange(1, vocab_size + 1)
    rows, length = BATCH
    tokens = np.random.default_rng(0).choice(vocab_size, size=(rows, length + 1), p=weights / weights.sum())
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:])


def curves(check: CoordinateCheck) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """For a picture: each place with its RMS by width at initialisation and after the last step."""
    for i, place in enumerate(check.places):
        yield place, check.rms[:, 0, i], check.rms[:, -1, i]
