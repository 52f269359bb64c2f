"""A reward model: one number for a text, read off a language model's last hidden state."""

import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.core.array_file import write_arrays
from lmxlab.core.config import ModelConfig
from lmxlab.errors import UserError
from lmxlab.files import atomic_file
from lmxlab.models.base import LanguageModel

FORMAT = "lmxlab reward model 1"


class RewardModel(nn.Module):
    """head . h, h the hidden state after the final norm at the last token (2009.01325).

    All parameters train; `model.freeze()` leaves only the head.
    """

    takes_lengths = True  # best_of_n and the searches tell it where each text ends

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.head = nn.Linear(model.config.block.d_model, 1, bias=False)
        self.head.weight = mx.random.normal(self.head.weight.shape) / (model.config.block.d_model + 1) ** 0.5

    def __call__(self, x: mx.array, lengths: mx.array | None = None) -> mx.array:
        """Token ids (B, T) -> rewards (B, 1).

        Args:
            lengths: (B,) tokens of each text, if shorter than T: the rest is padding on the right, and not read.
        """
        hidden, _ = self.model.hidden_states(x)
        if lengths is None:
            return self.head(hidden[:, -1])
        last = mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        return self.head(last[:, 0])

    def save(self, path: str | Path) -> None:
        """Writes weights and config to one safetensors file, whole or not at all."""
        arrays: Any = dict(cast(list, tree_flatten(self.parameters())))
        metadata = {"format": FORMAT, "config": json.dumps(self.model.config.to_dict())}
        with atomic_file(Path(path)) as file:
            write_arrays(file, arrays, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "RewardModel":
        """The model that `save` wrote; UserError if the file is none."""
        if not Path(path).is_file():
            raise UserError(f"No reward model at {path}; RewardModel.save writes one")
        try:
            arrays, metadata = cast(Any, mx.load(str(path), format="safetensors", return_metadata=True))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a reward model: {error}") from None
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is no reward model of lmxlab ({FORMAT!r}); RewardModel.save writes one")
        reward = cls(LanguageModel(ModelConfig.from_dict(json.loads(metadata["config"]))))
        reward.load_weights(list(arrays.items()))
        return reward
