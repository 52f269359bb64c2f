"""A reward is read off the last real token, can be learned, and is kept in a file."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.models.architectures import build, tokens

from lmxlab.inference.reward_model import RewardModel

from .test_speculative import TARGETS


def test_padding_on_the_right_changes_nothing() -> None:
    reward = RewardModel(build(TARGETS["hybrid"]()))
    texts = [tokens(1, n) for n in (3, 9, 6)]
    padded = mx.concatenate([mx.pad(text, [(0, 0), (0, 9 - text.shape[1])]) for text in texts])
    alone = [reward(text).item() for text in texts]
    together = reward(padded, lengths=mx.array([3, 9, 6]))
    assert together.shape == (3, 1)
    np.testing.assert_allclose(np.array(together)[:, 0], alone, atol=1e-5)
    assert abs(reward(padded)[0].item() - alone[0]) > 1e-3  # the padding would have been read


def test_it_learns_a_preference() -> None:
    reward = RewardModel(build(TARGETS["llama"]()))
    reward.model.freeze()
    assert [name for name, _ in tree_flatten(reward.trainable_parameters())] == ["head.weight"]
    reward.model.unfreeze()
    x = tokens(16, 6)
    good = (x[:, 2] % 2).astype(mx.float32)[:, None]  # texts with an odd third token
    optimizer = optim.Adam(1e-3)
    step = nn.value_and_grad(
        reward, lambda model: nn.losses.binary_cross_entropy(model(x), good, with_logits=True).mean()
    )
    for _ in range(40):
        _, gradients = step(reward)
        optimizer.update(reward, gradients)
    assert bool(((reward(x) > 0) == (good > 0)).all())


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    reward, x = RewardModel(build(TARGETS["llama"]())), tokens(2, 6)
    reward.save(tmp_path / "reward.safetensors")
    again = RewardModel.load(tmp_path / "reward.safetensors")
    assert mx.array_equal(again(x), reward(x))
    for name, content, message in (("missing", None, "No reward model"), ("torn", b"{", "cannot be read")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            RewardModel.load(tmp_path / name)
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros((1,))})
    with pytest.raises(ValueError, match="is no reward model"):
        RewardModel.load(tmp_path / "other.safetensors")
