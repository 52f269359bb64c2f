"""Speculative decoding is the target's own decoding, only faster: equal texts, equal distributions."""

import dataclasses
import itertools

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats
from tests.models.architectures import ARCHITECTURES, build, tokens

from lmxlab.core import cache as caches
from lmxlab.core.config import BlockConfig, ModelConfig
from lmxlab.inference.drafters import Draft, ModelDrafter, PromptLookupDrafter
from lmxlab.inference.speculative import speculative_decode, verify
from lmxlab.models import decoding
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate
from lmxlab.models.sampling import Keys, Sampler

SIZE = {"d_model": 32, "n_heads": 4, "d_ff": 48, "max_seq_len": 40}
ATTENTION = BlockConfig(attention="gqa", ffn="gated", norm="rms_norm", position="rope", n_kv_heads=2, **SIZE)
RECURRENT = BlockConfig(
    attention="mamba2",
    ffn="none",
    norm="rms_norm",
    position="none",
    mamba_n_heads=4,
    mamba_head_dim=16,
    ssm_state_size=8,
    mamba_chunk_size=4,
    **SIZE,
)


def layers(*blocks: BlockConfig) -> ModelConfig:
    return ModelConfig(block=blocks[0], vocab_size=61, n_layers=len(blocks), block_configs=blocks)


TARGETS = {name: ARCHITECTURES[name] for name in ("llama", "gpt2", "gemma3", "chunked", "alibi")} | {
    "recurrent": lambda: layers(RECURRENT, RECURRENT),
    "hybrid": lambda: layers(RECURRENT, ATTENTION, RECURRENT),
}
# Dynamic rope scaling goes by the length of a pass, so that passes of several tokens are not single steps.
EVERY_KIND = TARGETS | {name: config for name, config in ARCHITECTURES.items() if "dynamic" not in name}


@pytest.mark.parametrize("drafter", ["llama", "recurrent"])
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_greedy_text_is_the_targets_own(name: str, drafter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "STEP_TOKENS", 8)  # so that buffers grow, and those of windows move on
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 4)
    target, draft = build(TARGETS[name]()), build(TARGETS[drafter]())
    for n_prompt, n_draft in ((1, 1), (9, 3), (6, 7)):
        prompt = tokens(1, n_prompt)
        expected = generate(target, prompt, 20, temperature=0.0).tolist()
        out, rates = speculative_decode(target, draft, prompt, 20, n_draft)
        assert out.tolist() == expected
        assert 0 <= rates["total_accepted"] <= rates["total_drafted"]


class Alternating:
    """Proposes the greedy text itself, but for every second token, so that most drafts are accepted in part."""

    def __init__(self, text: list[int], vocab_size: int):
        self.text, self.at, self.vocab_size = text, 0, vocab_size

    def draft(self, new, hidden, n_tokens, sampler, keys) -> Draft:
        self.at += len(new)
        right = self.text[self.at : self.at + n_tokens]
        return Draft(mx.array([[(token + i % 3 // 2) % 61 for i, token in enumerate(right)]], mx.int32), None)


@pytest.mark.parametrize("name", sorted(EVERY_KIND))
def test_drafts_that_are_right_in_part_are_taken_back_in_part(name: str) -> None:
    target, prompt = build(EVERY_KIND[name]()), tokens(1, 5)
    expected = generate(target, prompt, 24, temperature=0.0)
    out, rates = speculative_decode(target, Alternating(expected[0].tolist(), 61), prompt, 24, 5)
    assert out.tolist() == expected.tolist()
    assert rates["total_accepted"] == 16  # two of five are right, then the target says the third: 8 rounds


@pytest.mark.parametrize("name", sorted(TARGETS))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_drafts_for_itself_is_nearly_always_accepted(name: str, temperature: float) -> None:
    model, prompt = build(TARGETS[name]()), tokens(1, 5)
    for n_draft in (1, 4, 50):
        out, rates = speculative_decode(model, model, prompt, 23, n_draft, temperature)
        assert out.shape == (1, 28)
        assert 0.9 <= rates["acceptance_rate"] <= 1


def outcomes(model: LanguageModel, prompt: mx.array, n: int, sampler: Sampler) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of n tokens."""
    texts = list(itertools.product(range(model.config.vocab_size), repeat=n))
    rows = mx.concatenate([mx.repeat(prompt, len(texts), axis=0), mx.array(texts)], axis=1)
    logits, _ = model(rows)
    p = np.array(sampler.probabilities(logits[:, prompt.shape[1] - 1 : -1]), np.float64)
    chosen = np.take_along_axis(p, np.array(texts)[:, :, None], axis=2)[:, :, 0].prod(axis=1)
    return dict(zip(texts, chosen, strict=True))


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 1.5, "top_k": 3, "min_p": 0.2}],
    ids=["plain", "limited"],
)
def test_texts_are_distributed_as_the_targets(settings: dict[str, float]) -> None:
    block = dataclasses.replace(ATTENTION, d_model=8, n_heads=2, n_kv_heads=1, d_ff=8)
    config = ModelConfig(block=block, vocab_size=4, n_layers=1)
    target, draft = build(config, 0.6), build(config, 0.6)
    prompt, n, runs = mx.array([[1, 3]]), 3, 600
    expected = outcomes(target, prompt, n, Sampler(**settings))
    counts = dict.fromkeys(expected, 0)
    accepted = drafted = 0.0
    for seed in range(runs):
        out, rates = speculative_decode(target, draft, prompt, n, 2, **settings, seed=seed)
        counts[tuple(out[0, 2:].tolist())] += 1
        accepted, drafted = accepted + rates["total_accepted"], drafted + rates["total_drafted"]
    assert 0.3 < accepted / drafted < 0.95  # both ways are taken
    p = np.array(list(expected.values()))
    seen = np.array(list(counts.values()))
    assert seen[p == 0].sum() == 0
    rare = (p > 0) & (p * runs < 5)
    p, seen = np.append(p[p * runs >= 5], p[rare].sum()), np.append(seen[p * runs >= 5], seen[rare].sum())
    kept = p > 0
    assert stats.chisquare(seen[kept], p[kept] / p.sum() * runs).pvalue > 1e-3


def test_verification_is_lossless_for_sure_drafts_too() -> None:
    """A token that was not drawn but proposed for sure is accepted with its own probability."""
    target = mx.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    keys, runs = Keys(0), 2000
    first = np.zeros(3)
    for _ in range(runs):
        verdict = verify(Draft(mx.array([[2]]), None), target, keys)
        first[2 if verdict.n_accepted.item() else verdict.next_token.item()] += 1
    assert stats.chisquare(first, np.array([0.5, 0.2, 0.3]) * runs).pvalue > 1e-3


def test_prompt_lookup_proposes_what_followed_before() -> None:
    def propose(text: list[int], n: int = 3, longest: int = 3) -> list[int]:
        drafter = PromptLookupDrafter(61, longest)
        drafter.draft(text[:2], None, 3, Sampler(), Keys())
        return drafter.draft(text[2:], None, n, Sampler(), Keys()).tokens[0].tolist()

    assert propose([1, 2, 3, 4, 5, 1, 2]) == [3, 4, 5]
    assert propose([1, 2, 3, 9, 1, 2, 4, 9, 1, 2], n=2) == [4, 9]  # the latest
    assert propose([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]) == [3, 8, 1]  # the longest: 7 1 2
    assert propose([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], longest=2) == [4, 7, 1]
    assert propose([1, 2, 3, 4]) == []


def test_prompt_lookup_is_lossless_and_pays_where_a_text_repeats() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 6)
    expected = generate(model, prompt, 30, temperature=0.0)
    out, _ = speculative_decode(model, PromptLookupDrafter(61), prompt, 30)
    assert out.tolist() == expected.tolist()
    repeated = mx.tile(mx.arange(10), 3)[None]
    steered = build(TARGETS["llama"]())
    steered.blocks = []  # without layers the next token depends on the last one alone: greedy text goes in circles
    rates = speculative_decode(steered, PromptLookupDrafter(61), repeated, 200, 8)[1]
    assert rates["acceptance_rate"] > 0.8


def test_a_seed_repeats_the_text() -> None:
    target, draft, prompt = build(TARGETS["llama"]()), build(TARGETS["llama"]()), tokens(1, 4)
    texts = [speculative_decode(target, draft, prompt, 20, temperature=1.0, seed=s)[0].tolist() for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_no_tokens_asked_is_the_prompt_and_one_row_may_come_without_a_batch() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, 4)
    out, rates = speculative_decode(model, model, prompt[0], 0)
    assert out.tolist() == prompt.tolist()
    assert rates == {"acceptance_rate": 0.0, "total_drafted": 0.0, "total_accepted": 0.0}


def test_what_cannot_be_is_refused() -> None:
    target, prompt = build(TARGETS["llama"]()), tokens(1, 4)
    other = build(dataclasses.replace(TARGETS["llama"](), vocab_size=60))
    with pytest.raises(ValueError, match="knows 60 tokens and the target 61.*same tokenizer"):
        speculative_decode(target, other, prompt)
    for bad, settings, message in (
        (tokens(2, 4), {}, "one prompt"),
        (mx.zeros((1, 0), mx.int32), {}, "at least one token"),
        (prompt, {"draft_tokens": 0}, "draft_tokens 0"),
        (prompt, {"max_tokens": -1}, "max_tokens is -1"),
        (mx.array([[61]]), {}, "vocabulary has 61"),
    ):
        with pytest.raises(ValueError, match=message):
            speculative_decode(target, ModelDrafter(target), bad, **settings)
    with pytest.raises(ValueError, match="longest is 0"):
        PromptLookupDrafter(61, 0)


def test_a_draft_is_accepted_up_to_the_ratio_of_the_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    q, p = mx.array([[0.8, 0.2], [0.8, 0.2]]), mx.array([[0.4, 0.6]] * 3)
    draft = Draft(mx.array([[0, 0]]), q)
    for luck, accepted in (([0.49, 0.49], 2), ([0.49, 0.51], 1), ([0.51, 0.0], 0)):
        monkeypatch.setattr(mx.random, "uniform", lambda *_, luck=luck, **__: mx.array(luck))
        assert verify(draft, p, Keys(0)).n_accepted.item() == accepted
