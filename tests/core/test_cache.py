import mlx.core as mx
import pytest

from lmxlab.core import cache as caches
from lmxlab.core.cache import STEP_TOKENS, KVCache, WindowCache, as_cache


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
        shapes.add(cache.snapshot()["_keys"].shape[2])
    assert shapes == {STEP_TOKENS}
    cache.update_and_fetch(*draw(1))
    assert cache.snapshot()["_keys"].shape[2] == 2 * STEP_TOKENS


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


@pytest.mark.parametrize("sizes", [[1] * 40, [3] * 13, [30, 1, 1, 9, 2], [7, 30]])
@pytest.mark.parametrize("reach", [1, 4, 9])
def test_a_window_cache_gives_the_tokens_within_reach(
    sizes: list[int], reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "STEP_TOKENS", 6)
    cache, parts, most = WindowCache(reach), [], 0
    for size in sizes:
        parts.append(draw(size))
        fetched = cache.update_and_fetch(*parts[-1])
        for i in range(2):
            everything = mx.concatenate([part[i] for part in parts], axis=2)
            wanted = min(everything.shape[2], reach - 1 + size)
            assert mx.array_equal(fetched[i], everything[:, :, -wanted:])
            assert mx.array_equal(cache[i], everything[:, :, -cache[i].shape[2] :])
        most = max(most, cache.snapshot()["_keys"].shape[2])
    assert cache.offset == sum(sizes)
    assert most <= reach - 1 + 3 * 6 + max(sizes)


def test_a_window_cache_is_trimmed_as_far_as_it_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "STEP_TOKENS", 6)
    cache, parts = WindowCache(4), [draw(1) for _ in range(50)]
    for part in parts:
        cache.update_and_fetch(*part)
    state = cache.snapshot()
    assert 6 <= cache.trim(30) < 30
    left = cache.offset
    again, _ = cache.update_and_fetch(*parts[left])
    assert mx.array_equal(again, mx.concatenate([keys for keys, _ in parts[left - 3 : left + 1]], axis=2))
    cache.restore(state)
    assert cache.offset == 50 and cache.trim(2) == 2
    short = WindowCache(4)
    short.update_and_fetch(*draw(3))
    assert short.trim(10) == 3 and short.offset == 0
