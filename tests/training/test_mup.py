"""muP against the mup package: the same steps, the same rates, the same initial sizes; and what they are for."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import kernels
from lmxlab.core.config import ModelConfig
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt_config
from lmxlab.training import TrainConfig, Trainer
from lmxlab.training.optimizers import is_hidden_matrix

SCRIPT = Path(__file__).parent / "mup_reference.py"
WIDTH, BASE, VOCAB, LENGTH = 64, 16, 29, 12
RATE, DECAY, STEPS, EPS = 3e-3, 0.1, 10, 1e-6


def config(tied: bool, width: int = WIDTH) -> ModelConfig:
    return gpt_config(VOCAB, width, 2, 2, 2 * width, LENGTH, tie_embeddings=tied, mup_base_width=BASE)


def weights(model: LanguageModel) -> dict[str, np.ndarray]:
    return {name: np.array(p) for name, p in tree_flatten(model.parameters())}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """For tied and for untied embeddings: a start, and what the mup package makes of it."""
    for package in ("torch", "mup"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    found = {tied: tmp_path_factory.mktemp("mup") for tied in (True, False)}
    for tied, folder in found.items():
        mx.random.seed(0)
        model = LanguageModel(config(tied))
        vectors = [(name, p) for name, p in tree_flatten(model.parameters()) if p.ndim == 1]
        # Biases that are 0 and norms that are 1 would not show that one is forgotten.
        model.load_weights([(name, p + 0.1 * mx.random.normal(p.shape)) for name, p in vectors], strict=False)
        tokens = mx.random.randint(0, VOCAB, (3, LENGTH + 1))
        positions = model.embed_position(mx.zeros((1, LENGTH, WIDTH)))[0]
        np.savez(folder / "start.npz", tokens=tokens, positions=positions, **weights(model))
        spec = {"width": WIDTH, "base": BASE, "vocab": VOCAB, "heads": 2, "layers": 2, "tied": tied, "steps": STEPS}
        spec |= {"embed_scale": model.config.embed_scale, "lr": RATE, "decay": DECAY, "eps": EPS}
        (folder / "spec.json").write_text(json.dumps(spec))
    subprocess.run([sys.executable, SCRIPT, *found.values()], check=True, capture_output=True)
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("tied", [True, False])
def test_ten_steps_are_those_of_the_mup_package(
    tied: bool, folders: dict[bool, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.switch, "_exact", True)
    start, expected = (dict(np.load(folders[tied] / name)) for name in ("start.npz", "end.npz"))
    tokens, _ = mx.array(start.pop("tokens")), start.pop("positions")
    model = LanguageModel(config(tied))
    model.load_weights([(name, mx.array(array)) for name, array in start.items()])
    settings = TrainConfig(
        learning_rate=RATE, weight_decay=DECAY, warmup_steps=0, lr_schedule="constant", max_grad_norm=0.0, eps=EPS
    )
    trainer = Trainer(model, settings)
    for _ in range(STEPS):
        trainer.train_step((tokens[:, :-1], tokens[:, 1:]))
    np.testing.assert_allclose(np.array(model(tokens[:, :-1])[0]), expected.pop("logits"), atol=1e-5)
    found = weights(model)
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        if not name.endswith("k_proj.bias"):  # the softmax does not feel it
            assert np.abs(theirs - start[name]).max() > 3e-4, name
        np.testing.assert_allclose(found[name], theirs, atol=1e-5, err_msg=name)


@pytest.mark.oracle
@pytest.mark.parametrize("tied", [True, False])
def test_rates_and_initial_sizes_are_those_of_the_mup_package(tied: bool, folders: dict[bool, Path]) -> None:
    """Its rules are for a model 4 times as wide as the base; large ones tell their standard deviation best."""
    rules = json.loads((folders[tied] / "rules.json").read_text())
    model = LanguageModel(config(tied))
    rates = {path: 0.25 if is_hidden_matrix(path, p) else 1.0 for path, p in tree_flatten(model.parameters())}
    assert {name: rule["rate"] for name, rule in rules.items()} == pytest.approx(rates)
    wide, narrow = (weights(LanguageModel(config(tied, width))) for width in (1024, 256))
    for name, rule in rules.items():
        if wide[name].ndim == 2:
            ratio = wide[name].std() / narrow[name].std() / rule["std"]
            assert ratio == pytest.approx(1, rel=0.05), name
