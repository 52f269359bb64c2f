"""Laws of activation patching: all of the clean run brings all of its answer back, and nothing acts backwards."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.analysis import PLACES, logit_difference, patch_heads, patch_positions
from lmxlab.errors import UserError
from lmxlab.models.base import LanguageModel
from lmxlab.models.families import FAMILIES
from lmxlab.models.gpt import gpt_tiny

CLEAN, CORRUPTED = mx.array([1, 2, 3, 4, 5]), mx.array([1, 9, 3, 4, 5])  # they differ at position 1
METRIC = logit_difference(7, 8)


def test_the_difference_enters_where_the_prompts_differ_and_leaves_at_the_end() -> None:
    model = LanguageModel(gpt_tiny())
    into = patch_positions(model, CLEAN, CORRUPTED, METRIC, place="input")
    np.testing.assert_array_equal(into[0], [0, 1, 0, 0, 0])  # before layer 0 only the changed token differs
    out = patch_positions(model, CLEAN, CORRUPTED, METRIC)
    np.testing.assert_array_equal(out[-1], [0, 0, 0, 0, 1])  # after the last layer only the last token is read
    np.testing.assert_allclose(out[0], into[1], atol=1e-6)
    assert abs(out[0, 1]) > 0 and abs(out[0, 4]) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_before_the_difference_matters(family: str) -> None:
    model = LanguageModel(FAMILIES[family].tiny())
    for place in PLACES:
        found = patch_positions(model, CLEAN, CORRUPTED, METRIC, place=place)
        known = ~np.isnan(found[:, 0])
        np.testing.assert_array_equal(found[known, 0], 0)
        if place in ("input", "output"):
            assert known.all() and not np.isnan(found).any()


def test_a_model_that_is_one_head_has_all_of_the_answer_in_it() -> None:
    """With one layer of one head and no FFN, what is not in the head is what the last token itself carries: nothing."""
    config = gpt_tiny()
    block = dataclasses.replace(config.block, n_heads=1, ffn="none")
    model = LanguageModel(dataclasses.replace(config, block=block, n_layers=1))
    np.testing.assert_allclose(patch_heads(model, CLEAN, CORRUPTED, METRIC), [[1.0]], atol=1e-5)


def test_heads_are_patched_one_by_one() -> None:
    model = LanguageModel(gpt_tiny())
    model.blocks[1].attention.o_proj.weight[:, 32:] = 0  # head 1 of layer 1 writes nothing
    found = patch_heads(model, CLEAN, CORRUPTED, METRIC)
    assert found.shape == (2, 2)
    assert found[1, 1] == pytest.approx(0, abs=1e-6) and abs(found[1, 0]) > 1e-4


def test_a_layer_without_heads_has_no_number() -> None:
    model = LanguageModel(FAMILIES["jamba"].tiny())
    found = patch_heads(model, CLEAN, CORRUPTED, METRIC)
    softmax = [block.config.attention == "gqa" for block in model.blocks]
    assert [not np.isnan(row).all() for row in found] == softmax and 0 < sum(softmax) < len(softmax)


def test_prompts_that_cannot_be_compared_are_refused() -> None:
    model = LanguageModel(gpt_tiny())
    with pytest.raises(UserError, match="clean prompt has 4 tokens, the corrupted one 5"):
        patch_positions(model, CLEAN[:4], CORRUPTED, METRIC)
    with pytest.raises(UserError, match="of both prompts: choose prompts or a metric that differ"):
        patch_positions(model, CLEAN, CLEAN, METRIC)
    with pytest.raises(UserError, match="Unknown place"):
        patch_positions(model, CLEAN, CORRUPTED, METRIC, place="middle")
