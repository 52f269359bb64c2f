"""What must hold for the caches of every architecture: padding is unseen, rollback is exact, files keep everything."""

import dataclasses
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from lmxlab.core import cache as caches
from lmxlab.errors import UserError
from lmxlab.models.prompt_cache import load_prompt_cache, save_prompt_cache

from .architectures import ARCHITECTURES, build, gap, tokens
from .test_properties import every_architecture, loss_of

LARGEST_GAP = 1e-4  # of logits, as correctness.md has it; a Gated DeltaNet of random weights comes near

pytestmark = pytest.mark.usefixtures("cpu_forms_at_any_size")


@every_architecture
def test_a_row_with_left_padding_is_decoded_as_it_is_alone(name: str) -> None:
    model = build(ARCHITECTURES[name]())
    lengths, longest, more = (3, 12, 9), 12, tokens(3, 8)
    rows = [tokens(1, length) for length in lengths]
    padding = [longest - length for length in lengths]
    if "dynamic" in name:
        with pytest.raises(UserError, match="Dynamic rope scaling"):
            model.make_cache(left_padding=padding)
        return
    padded = mx.concatenate([mx.pad(row, [(0, 0), (pad, 0)]) for row, pad in zip(rows, padding, strict=True)])
    logits, cache = model(padded, cache=model.make_cache(left_padding=padding))
    parts = [logits[:, -1:]]
    for piece in (more[:, :1], more[:, 1:4], more[:, 4:5], more[:, 5:]):
        logits, cache = model(piece, cache)
        parts.append(logits)
    together = mx.concatenate(parts, axis=1)
    for i, row in enumerate(rows):
        alone, _ = model(mx.concatenate([row, more[i : i + 1]], axis=1))
        assert gap(together[i : i + 1], alone[:, -9:]) <= LARGEST_GAP


@every_architecture
def test_a_snapshot_takes_back_any_number_of_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "STEP_TOKENS", 4)
    model = build(ARCHITECTURES[name]())
    x, other = tokens(2, 20), tokens(2, 7)
    full, _ = model(x)
    _, cache = model(x[:, :12], cache=model.make_cache())
    held = [entry for entry in cache if entry is not None]  # some layers remember nothing
    states = [entry.snapshot() for entry in held]
    for _ in range(2):
        model(other[:, :3], cache)
        model(other[:, 3:], cache)
        for entry, state in zip(held, states, strict=True):
            entry.restore(state)
    logits, _ = model(x[:, 12:], cache)
    assert gap(logits, full[:, 12:]) <= LARGEST_GAP


@every_architecture
def test_an_empty_snapshot_leaves_nothing_of_what_was_read(name: str) -> None:
    model = build(ARCHITECTURES[name]())
    cache = model.make_cache()
    held = [entry for entry in cache if entry is not None]
    states = [entry.snapshot() for entry in held]
    model(tokens(3, 7), cache)
    for entry, state in zip(held, states, strict=True):
        entry.restore(state)
    x = tokens(1, 9)
    model(x[:, :4], cache)
    assert gap(model(x[:, 4:], cache)[0], model(x)[0][:, 4:]) <= LARGEST_GAP


@every_architecture
def test_trimmed_tokens_leave_no_trace(name: str) -> None:
    model = build(ARCHITECTURES[name]())
    x, other = tokens(2, 20), tokens(2, 3)
    full, _ = model(x)
    _, cache = model(x[:, :12], cache=model.make_cache())
    model(other, cache)
    held = [entry for entry in cache if entry is not None]
    able = [entry.trimmable >= 3 for entry in held]
    assert [entry.trim(3) == 3 for entry in held] == able
    if all(able):
        assert {entry.offset for entry in held} == {12}
        assert gap(model(x[:, 12:], cache)[0], full[:, 12:]) <= LARGEST_GAP


@every_architecture
def test_a_prompt_cache_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    model = build(ARCHITECTURES[name]())
    x = tokens(2, 20)
    _, cache = model(x[:, :12], cache=model.make_cache(left_padding=None if "dynamic" in name else [0, 0]))
    save_prompt_cache(tmp_path / "prompt", cache, model)
    again = load_prompt_cache(tmp_path / "prompt", model)
    expected, _ = model(x[:, 12:], cache)
    assert gap(model(x[:, 12:], again)[0], expected) == 0.0


@every_architecture
def test_blocks_computed_again_have_the_same_gradients(name: str) -> None:
    model, x = build(ARCHITECTURES[name]()), tokens(2, 12)
    results = []
    for again in (True, False):
        model.config = dataclasses.replace(model.config, gradient_checkpointing=again)
        results.append(nn.value_and_grad(model, loss_of)(model, x))
    (loss, gradient), (plain_loss, plain) = results
    assert gap(loss, plain_loss) <= 1e-6
    for (weight, array), (_, expected) in zip(tree_flatten(gradient), tree_flatten(plain), strict=True):
        assert gap(array, expected) <= 1e-5, weight
