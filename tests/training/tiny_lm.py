"""A language model of 3,000 parameters with every kind of parameter that optimizers treat differently."""

import mlx.core as mx
import mlx.nn as nn

from lmxlab.core import kernels
from lmxlab.training import TrainConfig

VOCAB, WIDTH, LENGTH = 17, 16, 12


class TinyBlock(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.drop = nn.Dropout(dropout)

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.drop(self.down(nn.gelu(self.up(self.norm(x)))))


class TinyLM(nn.Module):
    """Predicts from the present token only, which is enough to learn a successor table."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = [TinyBlock(dropout) for _ in range(2)]
        self.final_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    @property
    def output_weight(self) -> mx.array:
        return self.head.weight

    def hidden_states(self, x: mx.array, cache: None = None) -> tuple[mx.array, list]:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.final_norm(h), []

    def nats(self, x: mx.array, y: mx.array) -> mx.array:
        return kernels.linear_cross_entropy(self.hidden_states(x)[0], self.output_weight, y)


def tiny_model(dropout: float = 0.0, seed: int = 0) -> TinyLM:
    mx.random.seed(seed)
    model = TinyLM(dropout)
    mx.eval(model.parameters())
    return model


def batch(seed: int = 0, rows: int = 4, length: int = LENGTH) -> tuple[mx.array, mx.array]:
    """Tokens that follow the rule y = 3 x + 1, so that there is something to learn."""
    x = mx.random.randint(0, VOCAB, (rows, length), key=mx.random.key(seed))
    return x, (3 * x + 1) % VOCAB


class Cursor:
    """Endless seeded batches with a resumable position, as lmxlab.data.TokenBatches has."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> "Cursor":
        return self

    def __next__(self) -> tuple[mx.array, mx.array]:
        self.position += 1
        return batch(self.position)

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]


def tiny_config(**changes: object) -> TrainConfig:
    values = {"learning_rate": 3e-3, "warmup_steps": 2, "max_steps": 8, "compile_step": False, **changes}
    return TrainConfig(**values)  # type: ignore[arg-type]
