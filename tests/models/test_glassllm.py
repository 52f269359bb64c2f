"""The embedded pretrained model against its own numpy forward."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.core import kernels
from lmxlab.errors import UserError
from lmxlab.models.export import hf_config_of
from lmxlab.models.glassllm import load_glassllm_model, weights_folder

glassllm = pytest.importorskip("glassllm", reason="pip install --no-deps glassllm==0.1.0")
X = np.random.default_rng(0).integers(0, 1024, (2, 64))


@pytest.mark.parametrize("language", ["en", "pt"])
def test_logits_equal_its_own_forward(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.switch, "_exact", True)
    theirs, _ = glassllm.load_pretrained(language)
    expected = theirs(X).data
    assert expected.dtype == np.float64  # its tables of angles make it so
    logits, _ = load_glassllm_model(language, mx.float64)(mx.array(X))
    np.testing.assert_allclose(np.array(logits), expected, atol=1e-5, rtol=0)
    # In single precision the last bits of logits as large as 25 are lost.
    logits, _ = load_glassllm_model(language)(mx.array(X))
    assert np.abs(np.array(logits) - expected).max() < 1e-6 * np.abs(expected).max()


def test_it_is_a_llama() -> None:
    model = load_glassllm_model(dtype=mx.bfloat16)
    assert hf_config_of(model.config)[0].model_type == "llama"
    assert model.embed.weight.dtype == mx.bfloat16


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Unknown language of glassllm 'fr'"):
        load_glassllm_model("fr")
    assert isinstance(weights_folder("en"), Path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install --no-deps glassllm==0.1.0"):
        load_glassllm_model()
