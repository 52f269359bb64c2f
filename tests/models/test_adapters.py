"""Every architecture with adapters over all its layers, and quantised: cached, merged, dequantised it is the same."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from lmxlab.core.adapters import adapters_of
from lmxlab.core.kernels import switch
from lmxlab.core.lora import apply_lora, merge_lora
from lmxlab.core.quantize import dequantize_model, quantize_model
from lmxlab.models.base import LanguageModel

from .architectures import ARCHITECTURES, build, gap, tokens

NEAR = 1e-4
LEFT_OUT = {"head"}  # by "all-linear"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_adapters_and_quantised_layers_serve_every_architecture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "_exact", True)
    model, x = build(ARCHITECTURES[name]()), tokens(2, 9)
    before = model(x)[0]
    apply_lora(model, 2, 4.0, ["all-linear"])
    for layer in adapters_of(model).values():
        layer.lora_B = 0.2 * mx.random.normal(layer.lora_B.shape)
    bare = {path for path, module in model.named_modules() if type(module).__name__.endswith("Linear")}
    assert bare - adapters_of(model).keys() <= LEFT_OUT
    tuned = model(x)[0]
    assert gap(tuned, before) > 0.1
    assert gap(cached(model, x), tuned) < NEAR

    quantize_model(model, 8, 32, skip_narrow=True)
    quantised = model(x)[0]
    # Not the largest gap: rounding may send a token to another expert.
    assert 0 < mx.median(mx.abs(quantised - tuned)) < 0.1 * tuned.std()
    assert gap(cached(model, x), quantised) < NEAR
    gradients = nn.value_and_grad(model, lambda x: model.nats(x, x).mean())(x)[1]
    assert all(mx.isfinite(gradient).all() for _, gradient in tree_flatten(gradients))

    dequantize_model(model)
    assert gap(model(x)[0], quantised) < NEAR
    merge_lora(model)
    assert gap(model(x)[0], quantised) < NEAR and not adapters_of(model)


def cached(model: LanguageModel, x: mx.array) -> mx.array:
    """Logits of a pass over the first tokens and of steps after it."""
    cache = model.make_cache()
    outs = []
    for part in (x[:, :6], x[:, 6:7], x[:, 7:]):
        logits, cache = model(part, cache)
        outs.append(logits)
    return mx.concatenate(outs, axis=1)
