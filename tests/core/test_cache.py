import mlx.core as mx
import pytest

from lmxlab.core.cache import STEP_TOKENS, KVCache, as_cache


def draw(n_tokens: int) -> tuple[mx.array, mx.array]:
    return mx.random.normal((2, 3, n_tokens, 4)), mx.random.normal((2, 3, n_tokens, 4))


@pytest.mark.parametrize("sizes", [[1] * 5, [3, 1, 4], [STEP_TOKENS - 1, 1, 1, 1], [STEP_TOKENS + 7, 3 * STEP_TOKENS]])
def test_what_goes_in_comes_out_in_order(sizes: list[int]) -> None:
    cache = KVCache()
    parts = [draw(size) for size in sizes]
    for keys, values in parts:
        fetched = cache.update_and_fetch(keys, values)
    for i in range(2):
        expected = mx.concatenate([part[i] for part in parts], axis=2)
        assert mx.array_equal(fetched[i], expected) and mx.array_equal(cache[i], expected)
    assert cache.offset == sum(sizes)


def test_the_buffer_grows_by_steps() -> None:
    cache = KVCache()
    cache.update_and_fetch(*draw(5))
    shapes = set()
    for _ in range(STEP_TOKENS - 5):
        cache.update_and_fetch(*draw(1))
        shapes.add(cache.snapshot().keys.shape[2])
    assert shapes == {STEP_TOKENS}
    cache.update_and_fetch(*draw(1))
    assert cache.snapshot().keys.shape[2] == 2 * STEP_TOKENS


def test_trimmed_tokens_are_forgotten_and_overwritten() -> None:
    cache = KVCache()
    first, second = draw(6), draw(2)
    cache.update_and_fetch(*first)
    assert cache.trim(4) == 4 and cache.offset == 2
    keys, _ = cache.update_and_fetch(*second)
    assert mx.array_equal(keys, mx.concatenate([first[0][:, :, :2], second[0]], axis=2))
    assert cache.trim(100) == 4 and cache.trim(1) == 0 and cache.offset == 0


def test_a_snapshot_survives_what_is_written_after_it() -> None:
    cache = KVCache()
    first = draw(6)
    cache.update_and_fetch(*first)
    state = cache.snapshot()
    for _ in range(2):
        cache.trim(5)
        cache.update_and_fetch(*draw(3))
        mx.eval(cache.keys)
        cache.restore(state)
        keys, values = cache
        assert cache.offset == 6
        assert mx.array_equal(keys, first[0]) and mx.array_equal(values, first[1])


def test_an_empty_cache_has_no_keys() -> None:
    assert list(KVCache()) == [None, None]
    assert KVCache().offset == 0 and len(KVCache()) == 2


def test_a_plain_tuple_becomes_a_cache() -> None:
    keys, values = draw(3)
    cache = as_cache((keys, values))
    assert cache is not None and cache.offset == 3
    more = draw(1)
    fetched, _ = cache.update_and_fetch(*more)
    assert mx.array_equal(fetched, mx.concatenate([keys, more[0]], axis=2))
    assert keys.shape[2] == 3
    assert as_cache(cache) is cache and as_cache(None) is None
