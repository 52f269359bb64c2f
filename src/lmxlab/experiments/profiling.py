"""Time and memory of a model. MLX is lazy: a time counts only if the result was computed when the clock was read."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from lmxlab.errors import UserError
from lmxlab.experiments.statistics import compute_statistics
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.models.decoding import decode
from lmxlab.models.sampling import Sampler

MB = 2**20


def benchmark_fn(fn: Callable[[], Any], n_warmup: int = 3, n_iter: int = 10) -> dict[str, float]:
    """Times `fn`, with what it returns (arrays in any nesting) computed within the time.

    Returns:
        `mean_ms`, `std_ms` (0 for one iteration), `min_ms`, `max_ms` and `n_iter`.
    """
    if n_iter < 1:
        raise UserError(f"n_iter must be at least 1, got {n_iter}")
    for _ in range(n_warmup):
        mx.eval(fn())
    mx.synchronize()  # nothing that was started before may run into the first time
    times_ms = [_time_ms(fn) for _ in range(n_iter)]
    stats = compute_statistics(times_ms)
    return {f"{name}_ms": stats[name] for name in ("mean", "std", "min", "max")} | {"n_iter": n_iter}


def memory_estimate(model: nn.Module) -> dict[str, Any]:
    """Memory of the parameters, from shapes and types alone: nothing is computed or allocated.

    Returns:
        `total_bytes`, `total_mb` (2^20 bytes), `param_count` and `by_dtype` (bytes per type, as "float32").
    """
    by_dtype: Counter[str] = Counter()
    for _, array in _parameters(model):
        by_dtype[str(array.dtype).removeprefix("mlx.core.")] += array.nbytes
    total = by_dtype.total()
    count = sum(array.size for _, array in _parameters(model))
    return {"total_bytes": total, "total_mb": total / MB, "param_count": count, "by_dtype": dict(by_dtype)}


def count_parameters_by_module(model: nn.Module) -> dict[str, int]:
    """Parameters per top-level child (`embed`, `blocks`, ...); children without any are left out."""
    counts: Counter[str] = Counter()
    for name, array in _parameters(model):
        counts[name.split(".")[0]] += array.size
    return {name: count for name, count in counts.items() if count}


def profile_forward(model: nn.Module, tokens: mx.array, n_warmup: int = 2, n_iter: int = 5) -> dict[str, Any]:
    """Times the forward pass of tokens (B, T) without dropout.

    Returns:
        The keys of `benchmark_fn`, `tokens_per_sec`, `batch_size` and `seq_len`.
    """
    batch_size, seq_len = tokens.shape
    with evaluating(model):
        result: dict[str, Any] = dict(benchmark_fn(lambda: model(tokens)[0], n_warmup, n_iter))
    per_second = 1000 * batch_size * seq_len / result["mean_ms"]
    return result | {"tokens_per_sec": per_second, "batch_size": batch_size, "seq_len": seq_len}


def profile_generation(model: nn.Module, prompt: mx.array, max_tokens: int = 50) -> dict[str, Any]:
    """Times the decoder of `generate`, greedy: the prompt (prefill), then one token at a time (decode).

    Args:
        prompt: tokens (T,) or (B, T).

    Returns:
        `prefill_ms` (to the first new token), `decode_ms_per_token` and `decode_tokens_per_sec` (per sequence, of the
        tokens after the first; NaN without any), `total_ms`, `tokens_generated`, `prompt_len`.
    """
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, got {max_tokens}")
    prompt = prompt[None] if prompt.ndim == 1 else prompt

    def tokens(n: int) -> Iterator[mx.array]:
        steps = decode(cast(LanguageModel, model), prompt, n, Sampler(temperature=0.0), context="extend")
        return (step.tokens for step in steps)

    mx.eval(model.parameters(), *tokens(2))  # weights exist, kernels are warm
    mx.synchronize()
    start = prefilled = time.perf_counter()
    for i, token in enumerate(tokens(max_tokens)):
        mx.eval(token)  # a reader of a stream has each token before asking for the next
        if i == 0:
            prefilled = time.perf_counter()
    end = time.perf_counter()
    decode_s = (end - prefilled) / (max_tokens - 1) if max_tokens > 1 else math.nan
    return {
        "prefill_ms": 1000 * (prefilled - start),
        "decode_ms_per_token": 1000 * decode_s,
        "decode_tokens_per_sec": 1 / decode_s,
        "total_ms": 1000 * (end - start),
        "tokens_generated": max_tokens,
        "prompt_len": prompt.shape[1],
    }


def _time_ms(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    mx.eval(fn())
    return 1000 * (time.perf_counter() - start)


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    return cast(list[tuple[str, mx.array]], tree_flatten(model.parameters()))
