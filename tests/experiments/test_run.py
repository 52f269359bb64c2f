"""The parts of a run: scoring, sampling, what is recorded, signals as requests."""

import json
import math
import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from lmxlab.data import CharTokenizer, DataConfig, eval_batches, prepare
from lmxlab.eval.score import Score, Scorer
from lmxlab.experiments.interrupt import stop_on_signals
from lmxlab.experiments.provenance import environment, git_state
from lmxlab.experiments.run import execute, measure_step_s
from lmxlab.experiments.sample import sample_text, stream_text
from lmxlab.experiments.spec import Budget, RunSpec
from lmxlab.experiments.stored import build_model, load_model, read_spec
from lmxlab.models.base import LanguageModel
from lmxlab.models.gpt import gpt2_config, gpt_tiny
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

SPEC = RunSpec(
    "tiny",
    gpt_tiny(),
    DataConfig("pydocs"),
    TrainConfig(batch_size=2, compile_step=False, log_interval=1),
    seq_len=16,
    budget=Budget(steps=3),
    eval_tokens=300,
    sample_tokens=5,
)


def test_bits_per_byte_are_nats_over_the_bytes_of_the_scored_tokens() -> None:
    model = LanguageModel(gpt_tiny())
    tokens = np.array(mx.random.randint(0, 256, (333,)), dtype=np.uint16)
    token_bytes = np.arange(256, dtype=np.int32) % 4  # a quarter of the tokens are special: no bytes
    nats, n_bytes, scored = 0.0, 0, 0
    for x, y in eval_batches(tokens, 4, 16):
        logits = np.array(model(x)[0], dtype=np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for row, targets in zip(log_p.reshape(-1, 256), np.array(y).reshape(-1), strict=True):
            if token_bytes[targets]:
                nats, n_bytes, scored = nats - row[targets], n_bytes + token_bytes[targets], scored + 1
    score = Scorer(model, token_bytes)(eval_batches(tokens, 4, 16))
    assert (score.tokens, score.bytes) == (scored, n_bytes) and 0 < scored < 332
    assert score.val_bpb == pytest.approx(nats / (math.log(2) * n_bytes), rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / scored), rel=1e-4)


def test_scoring_follows_the_weights_and_leaves_dropout_on() -> None:
    import dataclasses

    block = dataclasses.replace(gpt_tiny().block, dropout=0.5)
    model = LanguageModel(dataclasses.replace(gpt_tiny(), block=block))
    model.train()
    tokens, scorer = np.arange(200, dtype=np.uint16), Scorer(model, np.ones(256, np.int32))
    first = scorer(eval_batches(tokens, 4, 16))
    assert scorer(eval_batches(tokens, 4, 16)) == first  # no dropout while scoring
    assert model.training and model.embed_dropout.training
    model.embed.weight = model.embed.weight * 3
    assert scorer(eval_batches(tokens, 4, 16)).nats != first.nats


def test_nothing_scored_is_missing_not_zero() -> None:
    empty = Score(0.0, 0, 0)
    assert math.isnan(empty.val_bpb) and math.isnan(empty.val_loss) and math.isnan(empty.perplexity)


def test_a_sample_may_be_longer_than_the_context() -> None:
    tokenizer = CharTokenizer("abcdefgh")
    model = LanguageModel(gpt2_config(vocab_size=8, d_model=16, n_heads=2, n_layers=1, max_seq_len=8))
    text = sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=3)
    assert len(text) == 50 and set(text) <= set("abcdefgh")
    assert text == sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=3)
    assert text != sample_text(model, tokenizer, [0, 1], max_tokens=50, context=8, seed=4)
    assert list(stream_text(model, tokenizer, [0], max_tokens=0, context=8)) == []


def test_a_run_is_the_same_for_the_same_seed_and_its_folder_says_all(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / name) for name in ("a", "b")]
    first, second = (execute(SPEC, folder) for folder in folders)
    assert first.val_bpb == second.val_bpb and first.metrics["curve"] == second.metrics["curve"]
    stored = read_spec(folders[0])
    assert stored.optim.max_steps == 3 and stored.budget == Budget(steps=3)
    spec, model = load_model(folders[0])
    score = Scorer(model, prepare(spec.data).token_bytes)(eval_batches(prepare(spec.data).val, 32, 16, 300))
    assert score.val_bpb == pytest.approx(first.val_bpb, rel=1e-6)
    assert first.param_count == build_model(SPEC).count_parameters()
    parts = [first.metrics[f"{name}_s"] for name in ("data", "compile", "train", "eval", "checkpoint", "sample")]
    assert first.wall_time_s == pytest.approx(sum(parts), abs=0.01)


def test_a_step_is_measured_without_touching_the_run() -> None:
    assert 0 < measure_step_s(SPEC, prepare(SPEC.data)) < 10


def test_the_record_names_code_packages_and_machine() -> None:
    record = environment()
    assert record["packages"]["mlx"] and record["hardware"]["cores"] >= 1 and record["python"]
    json.dumps(record)


def test_the_state_of_the_code_is_kept(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": "unknown"}

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "code.py").write_text("x = 1\n")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "first")
    clean = git_state(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "code.py").write_text("x = 2\n")
    (tmp_path / "new.txt").write_text("")
    dirty = git_state(tmp_path)
    assert dirty["dirty"] and "+x = 2" in dirty["diff"] and dirty["untracked"] == ["new.txt"]


def test_the_first_signal_asks_and_the_second_one_ends(request: pytest.FixtureRequest) -> None:
    # A shell starts background jobs with SIGINT ignored, and the tests may be one.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
