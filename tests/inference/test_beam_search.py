"""Beam search finds what transformers finds, and what an exhaustive search finds where that is possible."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tests.models.architectures import build, tokens

from lmxlab.core.config import ModelConfig
from lmxlab.inference.beam_search import beam_search
from lmxlab.inference.reward_model import RewardModel
from lmxlab.models.convert import load_from_hf
from lmxlab.models.generate import generate

from . import beam_reference
from .test_speculative import ATTENTION, TARGETS


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the oracle {package} is not installed: pip install 'lmxlab[oracle]'")
    folder = tmp_path_factory.mktemp("beams")
    subprocess.run([sys.executable, beam_reference.__file__, str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize("case", range(len(beam_reference.SETTINGS)))
def test_beams_equal_transformers(case: int, reference: Path) -> None:
    model, _ = load_from_hf(str(reference), dtype=mx.float32)
    settings = beam_reference.SETTINGS[case]
    stop = settings.get("eos_token_id", [])
    stop = stop if isinstance(stop, list) else [stop]
    expected = json.loads((reference / "beams.json").read_text())[case]
    found = beam_search(
        model,
        mx.array([beam_reference.PROMPT]),
        settings["num_beams"],
        beam_reference.NEW_TOKENS,
        stop_tokens=stop,
        length_penalty=settings["length_penalty"],
    )
    assert len(found) == settings["num_beams"]
    for (text, score), row, i in zip(found, expected["sequences"], itertools.count(), strict=False):
        assert text[0].tolist() == row[: text.shape[1]]
        assert set(row[text.shape[1] :]) <= {0, *stop[:1]}  # what transformers fills up with
        if expected["scores"] is not None:
            assert score == pytest.approx(expected["scores"][i], abs=1e-4)


def log_prob(model, text: mx.array, n_prompt: int) -> float:
    logits = np.array(model(text)[0], np.float64)[0, n_prompt - 1 : -1]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(np.take_along_axis(log_probs, np.array(text)[0, n_prompt:, None], axis=1).sum())


@pytest.mark.parametrize("name", ["llama", "gemma3", "recurrent", "hybrid"])
def test_a_score_is_the_sum_of_the_log_probabilities_of_the_tokens_returned(name: str) -> None:
    model, prompt = build(TARGETS[name]()), tokens(1, 5)
    stop = generate(model, prompt, 4, temperature=0.0)[0, -1:].tolist()
    found = beam_search(model, prompt, 4, 9, stop_tokens=stop)
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True) and len(found) == 4
    for text, score in found:
        assert score == pytest.approx(log_prob(model, text, 5), abs=1e-4)
        assert stop[0] not in text[0, 5:-1].tolist()
    assert any(text[0, -1].item() == stop[0] for text, _ in found)


def test_a_beam_as_wide_as_all_texts_finds_the_likeliest() -> None:
    model = build(ModelConfig(block=ATTENTION, vocab_size=4, n_layers=1), 0.4)
    prompt = mx.array([[1, 2]])
    texts = [mx.array([[1, 2, *new]]) for new in itertools.product(range(4), repeat=3)]
    best = sorted(((log_prob(model, text, 2), text.tolist()) for text in texts), reverse=True)[:10]
    found = beam_search(model, prompt, 64, 3)[:10]
    assert [text.tolist() for text, _ in found] == [text for _, text in best]
    assert [score for _, score in found] == pytest.approx([score for score, _ in best], abs=1e-4)


def test_a_width_of_one_is_greedy_and_no_tokens_are_the_prompt() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 5)
    ((text, _),) = beam_search(model, prompt, 1, 10)
    assert text.tolist() == generate(model, prompt, 10, temperature=0.0).tolist()
    ((text, score),) = beam_search(model, prompt[0], 4, 0)
    assert (text.tolist(), score) == (prompt.tolist(), 0.0)


def test_a_score_function_reranks_what_was_found() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 5)
    plain = beam_search(model, prompt, 4, 6)
    for shape in ((4,), (4, 1)):
        found = beam_search(model, prompt, 4, 6, lambda x, shape=shape: x[:, -1].reshape(shape))
        assert sorted(text.tolist() for text, _ in found) == sorted(text.tolist() for text, _ in plain)
        assert [score for _, score in found] == sorted((text[0, -1].item() for text, _ in plain), reverse=True)
    reward = RewardModel(build(TARGETS["llama"]()))
    for text, score in beam_search(model, prompt, 3, 6, reward, stop_tokens=[int(plain[0][0][0, 6])]):
        assert score == pytest.approx(reward(text).item(), abs=1e-5)  # each read at its own last token


def test_what_cannot_be_is_refused() -> None:
    model = build(TARGETS["llama"]())
    for prompt, settings, message in (
        (tokens(2, 4), {}, "give one prompt"),
        (tokens(1, 4), {"beam_width": 0}, "beam_width is 0"),
        (tokens(1, 4), {"max_tokens": -1}, "max_tokens -1"),
        (tokens(1, 4), {"score_fn": lambda x: x}, "score_fn returned the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            beam_search(model, prompt, **settings)
