"""What a task refuses, scores and samples."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.data import DataConfig, PreparedData, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.task import TextTask
from lmxlab.models.base import LanguageModel
from lmxlab.training.config import TrainConfig


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedData:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and looked at the rat. " * 60)
    return prepare(DataConfig(str(text), cache_dir=str(tmp_path)))


def spec_of(prepared: PreparedData, vocab_size: int | None = None) -> RunSpec:
    model = ModelConfig(BlockConfig(d_model=16, n_heads=2, d_ff=16), vocab_size or prepared.vocab_size, n_layers=1)
    optim = TrainConfig(batch_size=2, max_steps=2)
    return RunSpec("t", model, optim=optim, seq_len=8, eval_tokens=64, sample_tokens=5)


def test_a_text_is_scored_on_a_batch_a_curve_and_the_whole(prepared: PreparedData) -> None:
    spec = spec_of(prepared)
    task, model = TextTask(spec, prepared), LanguageModel(spec.model)
    scorer = task.scorer(model)
    tokens = {extent: scorer(extent)["scored_tokens"] for extent in ("batch", "curve", "whole")}
    assert tokens == {"batch": 8, "curve": 8, "whole": 64}
    whole = scorer("whole")
    assert whole["val_bpb"] == pytest.approx(whole["val_loss"] / 0.6931472, rel=1e-6)  # characters of one byte
    assert TextTask(replace(spec, eval_tokens=0), prepared).scorer(model)("whole")["scored_tokens"] == (
        len(prepared.val) - 1
    )


def test_a_run_begins_with_the_first_batch_whatever_was_measured_before(prepared: PreparedData) -> None:
    task, model = TextTask(spec_of(prepared), prepared), LanguageModel(spec_of(prepared).model)
    first, second = (next(iter(task.batches(model)))[0] for _ in range(2))
    assert mx.array_equal(first, second)


def test_what_has_no_bytes_is_not_measured(prepared: PreparedData) -> None:
    silent = replace(prepared, token_bytes=prepared.token_bytes * 0)
    spec = spec_of(prepared)
    assert TextTask(spec, silent).scorer(LanguageModel(spec.model))("whole") == {}


def test_the_sample_continues_the_validation_text(prepared: PreparedData) -> None:
    spec = spec_of(prepared)
    mx.random.seed(0)
    sample = TextTask(spec, prepared).sample(LanguageModel(spec.model))
    assert sample["prompt"] == prepared.tokenizer.decode(prepared.val[:8].tolist()) and len(sample["text"]) == 5


def test_a_model_that_lacks_tokens_is_refused(prepared: PreparedData) -> None:
    with pytest.raises(UserError, match="vocab_size is 5, but the tokenizer has"):
        TextTask(spec_of(prepared, 5), prepared)
