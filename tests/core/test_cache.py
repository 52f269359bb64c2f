import mlx.core as mx
import pytest

from lmxlab.core import cache as caches
from lmxlab.core.cache import (
    STEP_TOKENS,
    JointCache,
    KVCache,
    QuantizedKVCache,
    RecurrentCache,
    WindowCache,
    as_cache,
)
from lmxlab.errors import UserError


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


@pytest.mark.parametrize(("bits", "error", "size"), [(8, 0.04, 0.35), (4, 0.5, 0.2)])
def test_a_quantised_cache_is_small_and_near(bits: int, error: float, size: float) -> None:
    whole, cache = KVCache(), KVCache().quantized(bits)
    for n_tokens in (STEP_TOKENS - 2, 1, 5, 1):
        keys, values = (mx.random.normal((2, 3, n_tokens, 64)) for _ in range(2))
        expected, fetched = whole.update_and_fetch(keys, values), cache.update_and_fetch(keys, values)
    for i in range(2):
        assert fetched[i].shape == expected[i].shape and fetched[i].dtype == mx.float32
        assert 0 < float(mx.abs(fetched[i] - expected[i]).max()) < error
    packed, full = (sum(a.nbytes for a in arrays) for arrays in (cache._packed.values(), (whole._keys, whole._values)))
    assert packed < size * full
    assert cache.trim(6) == 6 and cache.keys.shape[2] == STEP_TOKENS - 1
    half = QuantizedKVCache(bits)
    half.update_and_fetch(keys.astype(mx.bfloat16), values.astype(mx.bfloat16))
    assert half.values.dtype == mx.bfloat16


def test_a_quantised_cache_says_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="3 bits; it must be 8 or 4"):
        QuantizedKVCache(3)
    with pytest.raises(UserError, match="multiple of 32 channels, not 4"):
        QuantizedKVCache(8).update_and_fetch(*draw(2))


def test_a_recurrent_cache_rolls_back_to_a_snapshot_but_forgets_no_single_token() -> None:
    cache = RecurrentCache()
    cache.advance(3, state=mx.ones((2, 4)), tail=mx.zeros((2, 3)))
    state = cache.snapshot()
    cache.advance(2, state=2 * mx.ones((2, 4)))
    assert cache.offset == 5 and cache.trim(1) == 0
    assert mx.array_equal(cache["state"], 2 * mx.ones((2, 4))) and mx.array_equal(cache["tail"], mx.zeros((2, 3)))
    cache.restore(state)
    assert cache.offset == 3 and mx.array_equal(cache["state"], mx.ones((2, 4)))


def test_joint_caches_are_trimmed_together_and_padded_alike() -> None:
    both, mixed = JointCache(KVCache(), WindowCache(4)), JointCache(KVCache(), RecurrentCache())
    for part in both.parts:
        part.update_and_fetch(*draw(3))
    mixed.parts[0].update_and_fetch(*draw(3))
    mixed.parts[1].advance(3, state=mx.ones((1,)))
    assert both.trim(2) == 2 and [part.offset for part in both.parts] == [1, 1]
    assert mixed.trim(2) == 0 and [part.offset for part in mixed.parts] == [3, 3]
    state = mixed.snapshot()
    mixed.parts[0].update_and_fetch(*draw(3))
    mixed.parts[1].advance(3, state=mx.zeros((1,)))
    mixed.restore(state)
    assert mixed.offset == 3 and mx.array_equal(mixed.parts[1]["state"], mx.ones((1,)))
    mixed.left_padding = mx.array([1, 0])
    assert all(part.left_padding is mixed.left_padding for part in mixed.parts)
    assert mixed.padding(1).tolist() == [[False], [False]]
    assert isinstance(mixed.quantized(8).parts[0], QuantizedKVCache)
