"""Documents in one row: what each computes is what it would alone, and none learns of another."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import pytest
from tests.models.architectures import ARCHITECTURES, build, gap, tokens

from lmxlab.core.segments import positions, visible
from lmxlab.errors import UserError
from lmxlab.training.objective import next_token

LENGTHS = (5, 7, 1, 3)  # 16 tokens in a row
SEGMENTS = mx.array([[n for n, length in enumerate(LENGTHS) for _ in range(length)]])


def test_a_token_sees_what_came_before_in_its_own_document() -> None:
    segments = mx.array([[4, 4, 9, 9, 9], [0, 0, 0, 0, 1]])
    first, second = visible(segments)[:, 0].astype(mx.int32).tolist()
    assert first == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert [sum(row) for row in second] == [1, 2, 3, 4, 1]
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]]


@pytest.mark.parametrize(
    "kind", ["llama", "gpt", "gpt2", "alibi", "no-position", "mistral", "window-alibi", "mla", "deepseek_v3", "gemma2"]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_document_in_a_row_has_the_states_that_it_has_alone(kind: str, checkpointing: bool) -> None:
    config = dataclasses.replace(ARCHITECTURES[kind](), gradient_checkpointing=checkpointing)
    model = build(config)
    x = tokens(2, sum(LENGTHS))
    packed = model.hidden_states(x, segments=mx.broadcast_to(SEGMENTS, x.shape))[0]
    start = 0
    for length in LENGTHS:
        part = slice(start, start + length)
        assert gap(packed[:, part], model.hidden_states(x[:, part])[0]) <= 2e-5
        start += length
    assert gap(packed, model.hidden_states(x)[0]) > 1e-2


def test_no_gradient_crosses_from_one_document_to_another() -> None:
    model = build(ARCHITECTURES["llama"]())
    x = mx.arange(16)[None]  # every token once, so that the gradient of its embedding is that of its place

    def second(embedding: mx.array) -> mx.array:
        model.embed.weight = embedding
        return (model.hidden_states(x, segments=SEGMENTS)[0][:, 5:12] ** 2).sum()

    touched = mx.abs(mx.grad(second)(model.embed.weight)).sum(axis=1)
    assert [place for place in range(16) if float(touched[place]) > 0] == list(range(5, 12))


def test_the_loss_of_packed_rows_is_that_of_the_documents() -> None:
    model, x = build(ARCHITECTURES["llama"]()), tokens(1, 16)
    y = mx.where(mx.arange(16) == 7, -100, tokens(1, 16))
    packed = next_token(model, x, y, SEGMENTS)
    alone = [next_token(model, x[:, a:b], y[:, a:b]) for a, b in ((0, 5), (5, 12), (12, 13), (13, 16))]
    assert float(packed.total) == pytest.approx(sum(float(loss.total) for loss in alone), rel=1e-5)
    assert float(packed.counted) == 15
    grad = nn.value_and_grad(model, lambda: next_token(model, x, y, SEGMENTS).total)()[1]
    assert gap(grad["embed"]["weight"], mx.zeros_like(model.embed.weight)) > 0.1


@pytest.mark.parametrize(
    "kind", ["mamba2", "gated-deltanet", "chunked", "sparse", "dynamic-scaling", "l2-norm-temperature"]
)
def test_layers_that_cannot_keep_documents_apart_say_so(kind: str) -> None:
    with pytest.raises(UserError, match="cannot be kept apart by a layer with"):
        build(ARCHITECTURES[kind]()).nats(tokens(1, 16), tokens(1, 16), SEGMENTS)


def test_segments_are_for_whole_rows_of_the_tokens_shape() -> None:
    model = build(ARCHITECTURES["llama"]())
    with pytest.raises(UserError, match="give one number per token"):
        model.hidden_states(tokens(1, 15), segments=SEGMENTS)
    with pytest.raises(UserError, match="give none with a cache"):
        model.hidden_states(tokens(1, 16), model.make_cache(), SEGMENTS)
