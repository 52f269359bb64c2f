"""What is captured is what flowed; what is put in its place is what flows on."""

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import PLACES, ActivationCapture, replacing
from lmxlab.errors import UnknownNameError
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.models.gpt import gpt_config, gpt_tiny

TOKENS = mx.array([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def test_layers_are_captured_by_number_and_chained() -> None:
    model = LanguageModel(gpt_tiny())
    with ActivationCapture(model) as capture:
        logits, _ = model(TOKENS)
    seen = capture.activations
    assert sorted(seen) == ["layer_0/input", "layer_0/output", "layer_1/input", "layer_1/output"]
    assert mx.array_equal(seen["layer_0/output"], seen["layer_1/input"])
    assert seen["layer_1/output"].shape == (2, 5, 64)
    assert mx.allclose(model.logits(model.final_norm(seen["layer_1/output"])), logits, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_branches_are_what_a_layer_adds_to_the_stream(family: str) -> None:
    model = LanguageModel(FAMILIES[family].tiny())
    with ActivationCapture(model, places=PLACES) as capture:
        model(TOKENS)
    seen = capture.activations
    for i, block in enumerate(model.blocks):
        branches = [seen[f"layer_{i}/{name}"] for name in ("attention", "ffn") if f"layer_{i}/{name}" in seen]
        assert len(branches) == block.has_attention + block.has_ffn
        np.testing.assert_allclose(sum(branches, seen[f"layer_{i}/input"]), seen[f"layer_{i}/output"], atol=1e-5)


def test_norms_are_those_of_the_arrays() -> None:
    model = LanguageModel(gpt_tiny())
    with ActivationCapture(model) as capture:
        model(TOKENS)
    for name, norm in capture.layer_norms().items():
        assert norm == pytest.approx(float(np.linalg.norm(np.array(capture.activations[name]))), rel=1e-5)


def test_dropout_is_off_inside_and_the_training_flags_are_as_before_after_it() -> None:
    model = LanguageModel(gpt_config(vocab_size=256, d_model=32, n_heads=2, n_layers=2, d_ff=64, dropout=0.5))
    model.train()
    model.blocks[1].eval()
    flags = [module.training for module in model.modules()]
    with ActivationCapture(model) as capture:
        model(TOKENS)
        first = capture.activations["layer_1/output"]
        model(TOKENS)
    assert mx.array_equal(first, capture.activations["layer_1/output"])
    with pytest.raises(RuntimeError), ActivationCapture(model):
        raise RuntimeError
    assert [module.training for module in model.modules()] == flags


def test_other_models_and_later_calls_are_not_captured() -> None:
    model, other = LanguageModel(gpt_tiny()), LanguageModel(gpt_tiny())
    with ActivationCapture(model) as capture:
        other(TOKENS)
    model(TOKENS)
    assert capture.activations == {}


def test_what_replaces_an_activation_flows_on() -> None:
    model = LanguageModel(gpt_tiny())
    plain, _ = model(TOKENS)
    with ActivationCapture(model) as capture:
        model(TOKENS[::-1])
    other = capture.activations["layer_1/input"]
    with replacing(model, {"layer_1/input": lambda _: other}):
        replaced, _ = model(TOKENS)
    assert mx.allclose(replaced, plain[::-1], atol=1e-6) and not mx.allclose(replaced, plain, atol=1e-2)
    assert mx.array_equal(model(TOKENS)[0], plain)


def test_a_place_that_no_layer_has_is_refused() -> None:
    model = LanguageModel(gpt_tiny())
    with pytest.raises(UnknownNameError, match="Unknown place 'middle'"):
        ActivationCapture(model, places=["middle"])
    with (
        pytest.raises(UnknownNameError, match="did you mean 'layer_1/output'"),
        replacing(model, {"layer_2/output": lambda x: x}),
    ):
        pass
