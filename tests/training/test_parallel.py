"""A batch in parts on several streams gives what one stream gives."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from tiny_lm import batch, tiny_config, tiny_model

from lmxlab import blas
from lmxlab.training import Trainer, parallel


@pytest.fixture
def streams(monkeypatch):
    """Sets how many streams there are."""

    def set_count(count: int) -> None:
        made = tuple(mx.new_stream(mx.cpu) for _ in range(count))
        monkeypatch.setattr(parallel, "cpu_streams", lambda: made)

    return set_count


def steps(count: int, streams, x: mx.array, y: mx.array) -> tuple[list[float], dict[str, mx.array]]:
    streams(count)
    trainer = Trainer(tiny_model(), tiny_config())
    losses = [trainer.train_step((x, y))["loss"] for _ in range(5)]
    return losses, dict(tree_flatten(trainer.model.parameters()))


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_streams_change_no_step_beyond_rounding(streams, rows):
    x, y = batch(rows=rows)
    # Parts with unequal numbers of scored tokens: their means must be weighted.
    y = mx.where(mx.arange(y.shape[1]) < 3, mx.where(mx.arange(rows)[:, None] == 0, -100, y), y)
    alone, parameters = steps(0, streams, x, y)
    for count in (2, 3):
        losses, others = steps(count, streams, x, y)
        assert losses == pytest.approx(alone, rel=1e-5)
        for path, value in parameters.items():
            assert mx.abs(value - others[path]).max().item() < 1e-5, path


def test_evaluation_weights_the_parts_by_their_tokens(streams):
    x, y = batch(rows=3)
    y = mx.where(mx.arange(3)[:, None] == 0, -100, y)
    results = []
    for count in (0, 2):
        streams(count)
        results.append(Trainer(tiny_model(), tiny_config()).evaluate([(x, y)])["eval_loss"])
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_every_stream_gets_about_as_many_elements(streams):
    streams(2)
    balance = parallel.Balance()
    sizes = [64, 4, 32, 30, 6]
    for size in sizes:
        balance.stream(mx.zeros((size,)))
    assert sorted(balance._loads) == [66, 70]


def test_blas_has_its_threads_back_after_the_block():
    if not blas.can_limit_threads():
        pytest.skip("no BLAS here whose threads can be set")
    library = blas.ctypes.CDLL(blas.load_blas().path)
    before = library.openblas_get_num_threads()
    with pytest.raises(KeyError), blas.limit_threads(1):
        assert library.openblas_get_num_threads() == 1
        raise KeyError
    assert library.openblas_get_num_threads() == before
