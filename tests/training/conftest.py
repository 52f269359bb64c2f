"""Puts this folder on the path, so that tests and the processes they start share `tiny_lm`; and TRL's results."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
collect_ignore = ["mup_reference.py"]  # a program that begins with PyTorch, which may not be there, nor beside lmxlab


@pytest.fixture(scope="session")
def trl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `trl_reference.py` wrote."""
    for package in ("torch", "transformers", "trl"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    folder = tmp_path_factory.mktemp("trl")
    done = subprocess.run([sys.executable, HERE / "trl_reference.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def exact() -> Iterator[None]:
    from lmxlab.core import kernels

    kernels.exact(True)
    yield
    kernels.exact(False)


@pytest.fixture
def trl(trl_folder: Path, exact: None) -> "TRL":
    return TRL(trl_folder)


class TRL:
    """The models and batches that TRL ran on, and what it computed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.batches = self.arrays("batches")

    def model(self, name: str) -> Any:
        import mlx.core as mx

        from lmxlab.models.convert import load_from_hf

        return load_from_hf(str(self.folder / name), dtype=mx.float32)[0]

    def arrays(self, case: str) -> dict[str, Any]:
        import mlx.core as mx
        import numpy as np

        with np.load(self.folder / f"{case}.npz") as file:
            return {name: mx.array(file[name]) for name in file.files}

    def check(self, case: str, model: Any, loss: Callable[[], Any]) -> dict[str, Any]:
        """Loss and all gradients within 1e-5 of TRL's, relative to the largest of each array where that is over 1."""
        import mlx.nn as nn
        import numpy as np
        from mlx.utils import tree_flatten

        expected = self.arrays(case)
        value, tree = nn.value_and_grad(model, loss)()
        assert float(value) == pytest.approx(float(expected["loss"]), rel=1e-5, abs=1e-5)
        ours = dict(tree_flatten(tree))
        theirs = {_our_name(name): array for name, array in expected.items() if name.startswith("gradient ")}
        assert theirs.keys() == ours.keys()
        assert max(float(abs(array).max()) for array in theirs.values()) > 1e-3  # there is a gradient to compare
        for name, array in theirs.items():
            atol = 1e-5 * max(1.0, float(abs(array).max()))
            np.testing.assert_allclose(np.array(ours[name]), np.array(array), atol=atol, rtol=0, err_msg=name)
        return expected


def _our_name(theirs: str) -> str:
    name = theirs.removeprefix("gradient ").removeprefix("model.")
    names = {"layers.": "blocks.", "self_attn.": "attention.", "mlp.gate_proj": "ffn.gate", "mlp.up_proj": "ffn.up"}
    names |= {"mlp.down_proj": "ffn.down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"embed_tokens": "embed", "lm_head": "head"}
    for old, new in names.items():
        name = name.replace(old, new)
    return "final_norm.weight" if name == "norm.weight" else name
