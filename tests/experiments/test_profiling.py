"""Times hold the computation, sizes need none, and the model is handed back as it was."""

import math
import subprocess
import sys
import time

import mlx.core as mx
import mlx.nn as nn
import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.errors import UserError
from lmxlab.experiments.profiling import (
    benchmark_fn,
    count_parameters_by_module,
    memory_estimate,
    profile_forward,
    profile_generation,
)
from lmxlab.models.base import LanguageModel


def tiny(**options) -> LanguageModel:
    block = BlockConfig(d_model=16, n_heads=2, d_ff=32, max_seq_len=64, dropout=0.5)
    return LanguageModel(ModelConfig(block=block, vocab_size=11, n_layers=2, **options))


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only when a test moves it."""

    class Clock:
        now_s = 0.0

        def __call__(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_benchmark_reports_the_iterations_after_the_warm_up(clock):
    durations_ms = iter([500, 500, 1, 2, 6])

    def work():
        clock.now_s += next(durations_ms) / 1000

    result = benchmark_fn(work, n_warmup=2, n_iter=3)
    assert result == pytest.approx({"mean_ms": 3, "std_ms": math.sqrt(7), "min_ms": 1, "max_ms": 6, "n_iter": 3})
    with pytest.raises(UserError, match="n_iter must be at least 1, got 0"):
        benchmark_fn(work, n_iter=0)


def test_the_time_of_one_iteration_has_no_spread(clock):
    assert benchmark_fn(lambda: None, n_warmup=0, n_iter=1)["std_ms"] == 0.0


def test_lazy_results_are_computed_within_the_time(monkeypatch):
    computed = []
    real = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: (computed.append(arrays), real(*arrays)))
    result = {"a": [mx.zeros((2,))]}
    benchmark_fn(lambda: result, n_warmup=2, n_iter=3)
    assert computed == [(result,)] * 5


def test_a_big_product_takes_longer_than_a_small_one():
    small, big = mx.ones((8, 8)), mx.ones((768, 768))
    times = {size: benchmark_fn(lambda x=x: x @ x @ x, n_iter=5)["min_ms"] for size, x in [("s", small), ("b", big)]}
    assert times["b"] > 2 * times["s"]


def test_memory_counts_bytes_by_type():
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2))
    model.layers[1].set_dtype(mx.bfloat16)
    assert memory_estimate(model) == {
        "total_bytes": 32 * 4 + 18 * 2,
        "total_mb": (32 * 4 + 18 * 2) / 2**20,
        "param_count": 50,
        "by_dtype": {"float32": 128, "bfloat16": 36},
    }


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_by_module_sum_to_the_count_of_the_model(tied):
    model = tiny(tie_embeddings=tied)
    counts = count_parameters_by_module(model)
    assert sum(counts.values()) == model.count_parameters() == memory_estimate(model)["param_count"]
    assert counts["embed"] == 11 * 16
    assert counts.get("head") == (None if tied else 11 * 16)
    assert {"embed", "blocks", "final_norm"} <= set(counts) and all(counts.values())


def test_a_module_without_parameters_is_left_out():
    model = nn.Module()
    model.empty, model.some = mx.zeros((0, 4)), mx.zeros((3,))
    assert count_parameters_by_module(model) == {"some": 3}


def test_counting_a_7b_model_allocates_none_of_its_parameters():
    code = """
import resource
import lmxlab
import mlx.core as mx
from lmxlab.models.base import LanguageModel
from lmxlab.models.llama import llama_7b
from lmxlab.experiments import count_parameters_by_module, memory_estimate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = LanguageModel(llama_7b())
counts = count_parameters_by_module(model)
assert sum(counts.values()) == 5_933_109_248, counts
assert memory_estimate(model)["total_bytes"] == 4 * 5_933_109_248
assert mx.get_peak_memory() < 100e6, mx.get_peak_memory()
assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 300_000
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_forward_profile_gives_tokens_per_second_of_the_mean():
    result = profile_forward(tiny(), mx.zeros((3, 5), dtype=mx.int32), n_warmup=1, n_iter=2)
    assert (result["batch_size"], result["seq_len"], result["n_iter"]) == (3, 5, 2)
    assert result["tokens_per_sec"] == pytest.approx(15 / (result["mean_ms"] / 1000))
    assert 0 < result["min_ms"] <= result["mean_ms"] <= result["max_ms"]


@pytest.mark.parametrize("training", [True, False])
def test_profiles_run_without_dropout_and_restore_the_mode(training):
    model = tiny()
    seen = []

    class Spy(nn.Module):
        def __call__(self, x):
            seen.append(self.training)
            return x

    model.embed_dropout = Spy()
    model.train(training)
    profile_forward(model, mx.zeros((1, 4), dtype=mx.int32))
    profile_generation(model, mx.zeros((4,), dtype=mx.int32), max_tokens=2)
    assert seen and not any(seen)
    assert model.training == model.embed_dropout.training == training


@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_the_generation_profile_times_the_decoder_with_its_computation(clock, monkeypatch, shape):
    """10 ms to build the graph of the prompt, 2 ms for that of a token; 1 ms more to compute either."""
    calls, real_eval, real_pass = [], mx.eval, LanguageModel.hidden_states

    def slow_pass(self, x, cache):
        clock.now_s += 0.010 if x.shape[1] == 6 else 0.002
        calls.append(x.shape)
        return real_pass(self, x, cache)

    def eval_in_1_ms(*arrays):
        clock.now_s += 0.001
        real_eval(*arrays)

    monkeypatch.setattr(LanguageModel, "hidden_states", slow_pass)
    monkeypatch.setattr(mx, "eval", eval_in_1_ms)
    result = profile_generation(tiny(), mx.zeros(shape, dtype=mx.int32), max_tokens=5)
    assert result == pytest.approx(
        {
            "prefill_ms": 13,  # the decoder begins the next token before it hands over this one
            "decode_ms_per_token": 10 / 4,
            "decode_tokens_per_sec": 4 / 0.010,
            "total_ms": 23,
            "tokens_generated": 5,
            "prompt_len": 6,
        }
    )
    batch = shape[0] if len(shape) == 2 else 1
    assert calls == [(batch, 6), (batch, 1)] + [(batch, 6)] + [(batch, 1)] * 4


def test_one_token_is_all_prefill_and_none_is_refused():
    result = profile_generation(tiny(), mx.zeros((4,), dtype=mx.int32), max_tokens=1)
    assert result["tokens_generated"] == 1 and 0 < result["prefill_ms"] <= result["total_ms"]
    assert math.isnan(result["decode_ms_per_token"]) and math.isnan(result["decode_tokens_per_sec"])
    with pytest.raises(UserError, match="max_tokens must be at least 1, got 0"):
        profile_generation(tiny(), mx.zeros((4,), dtype=mx.int32), max_tokens=0)
