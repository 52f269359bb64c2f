"""The decoder: seeds that are its own, contexts that end, prompts read in parts."""

import mlx.core as mx
import pytest

from lmxlab.core.config import ModelConfig
from lmxlab.models import decoding
from lmxlab.models.base import LanguageModel
from lmxlab.models.decoding import context_length, decode
from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.gpt import gpt2_tiny, gpt_tiny
from lmxlab.models.llama import llama_config, llama_tiny
from lmxlab.models.sampling import Keys, Sampler
from lmxlab.models.text import stream_text

from .architectures import ARCHITECTURES, build, gap, tokens


def test_a_seed_repeats_the_draws_and_leaves_the_global_state_alone() -> None:
    model, prompt = build(gpt_tiny()), tokens(2, 4)
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(3)
    texts = [generate(model, prompt, 20, seed=seed).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
    assert (
        list(stream_generate(model, prompt[:1], 20, seed=1)) == generate(model, prompt[:1], 20, seed=1)[0, 4:].tolist()
    )
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_a_seed_draws_a_new_number_for_every_token() -> None:
    """One token, drawn with the same number at every step, would follow a uniform distribution for ever."""
    model = LanguageModel(gpt_tiny())  # nearly uniform
    new = generate(model, mx.array([[1]]), 60, seed=0)[0].tolist()
    assert len(set(new)) > 30


def test_the_steps_carry_the_logits_that_were_drawn_from() -> None:
    model, prompt = build(llama_tiny()), tokens(2, 5)
    text = prompt
    for step in decode(model, prompt, 6, Sampler(temperature=0.7, top_k=4), keys=Keys(0)):
        logits = model(text)[0][:, -1]
        assert mx.allclose(step.logits, logits, atol=1e-4)
        text = mx.concatenate([text, step.tokens[:, None].astype(text.dtype)], axis=1)


def test_a_bias_steers_and_bans() -> None:
    model, prompt = build(llama_tiny()), tokens(1, 4)
    first = int(generate(model, prompt, 1, temperature=0.0)[0, 4])
    assert first not in generate(model, prompt, 30, logit_bias={first: float("-inf")})[0, 4:].tolist()
    assert set(generate(model, prompt, 9, logit_bias={7: 1e4})[0, 4:].tolist()) == {7}
    with pytest.raises(ValueError, match="names token 256"):
        generate(model, prompt, logit_bias={256: 1.0})


def test_min_p_of_one_is_greedy() -> None:
    model, prompt = build(llama_tiny()), tokens(1, 4)
    assert generate(model, prompt, 20, min_p=1.0).tolist() == generate(model, prompt, 20, temperature=0.0).tolist()


def test_a_prompt_beyond_the_context_is_refused_or_windowed() -> None:
    model = build(llama_tiny())
    prompt = tokens(1, 129)
    with pytest.raises(ValueError, match="129 tokens is longer than the model's context .max_seq_len 128.*window"):
        generate(model, prompt, 1)
    assert generate(model, prompt, 5, context="extend").shape == (1, 134)
    windowed = generate(model, prompt, 3, context="window", temperature=0.0)
    assert windowed[:, :129].tolist() == prompt.tolist()
    # The last tokens that leave room for three more, of which the last is not read.
    assert windowed[:, 129:].tolist() == generate(model, prompt[:, -126:], 3, temperature=0.0)[:, 126:].tolist()


def test_learned_positions_count_the_new_tokens_before_anything_is_written() -> None:
    model = build(gpt2_tiny())
    assert generate(model, tokens(1, 128), 1).shape == (1, 129)
    for context in ("error", "extend"):
        with pytest.raises(ValueError, match="128 tokens and 2 new ones are longer than max_seq_len 128"):
            next(stream_generate(model, tokens(1, 128), 2, context=context))
    assert generate(model, tokens(2, 100), 200, context="window").shape == (2, 300)


def test_a_full_window_goes_on_from_its_second_half() -> None:
    model, prompt = build(llama_tiny()), tokens(2, 5)
    out = generate(model, prompt, 11, context=8, temperature=0.0)
    text = prompt
    # 5 in sight and 4 new; the last 4 and 5 new; the last 7, for 2 are missing.
    for kept, new in ((5, 4), (4, 5), (7, 2)):
        tail = generate(model, text[:, -kept:], new, temperature=0.0)[:, kept:]
        text = mx.concatenate([text, tail], axis=1)
    assert out.tolist() == text.tolist()


def test_the_context_is_that_of_positions_that_end() -> None:
    endless = ("alibi", "no-position", "window-alibi", "dynamic-scaling", "window-dynamic-scaling", "mixed-layers")
    for name in (*endless, "gpt", "gpt2", "llama", "yarn-scaling", "mistral", "gemma3"):
        assert context_length(ARCHITECTURES[name]()) == (None if name in endless else 40)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_cache_of_the_first_tokens_is_gone_on_from(name: str) -> None:
    model, prompt = build(ARCHITECTURES[name]()), tokens(1, 12)
    plain = generate(model, prompt, 8, temperature=0.0)
    cache = model.make_cache()
    model(prompt[:, :7], cache=cache)
    assert generate(model, prompt, 8, temperature=0.0, cache=cache).tolist() == plain.tolist()
    assert cache[0].offset == 12 + 7
    with pytest.raises(ValueError, match="holds 12 of the prompt's 12 tokens"):
        generate(model, prompt, 8, cache=cache)


def test_a_quantised_cache_decodes_nearly_the_same() -> None:
    model, prompt = build(_wide_llama(), std=0.08), tokens(2, 12)
    gaps = []
    for bits in (8, 4):
        steps = decode(model, prompt, 2, Sampler(0.0), cache_bits=bits)
        exact = decode(model, prompt, 2, Sampler(0.0))
        next(steps), next(exact)
        gaps.append(gap(next(steps).logits, next(exact).logits))
    assert 0 < gaps[0] < 0.05 < gaps[1] < 1


def _wide_llama() -> ModelConfig:
    return llama_config(vocab_size=61, d_model=128, n_heads=4, n_kv_heads=2, n_layers=2, d_ff=48, max_seq_len=40)


@pytest.mark.parametrize(("context", "message"), [("wrap", "one of error, window, extend"), (0, "at least 1 token")])
def test_an_unknown_context_is_refused(context: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(build(gpt_tiny()), tokens(1, 4), 1, context=context)


def test_the_text_of_an_empty_prompt_is_refused() -> None:
    class Letters:
        def decode(self, tokens: list[int]) -> str:
            return "".join(map(chr, tokens))

    with pytest.raises(ValueError, match="at least one token"):
        next(stream_text(build(gpt_tiny()), Letters(), [], 5))


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma3", "chunked", "alibi", "dynamic-scaling"])
def test_a_long_prompt_is_read_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompt = build(ARCHITECTURES[name]()), tokens(2, 19)
    whole = generate(model, prompt, 8, temperature=0.0)
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 4)
    lengths = []
    hidden_states = LanguageModel.hidden_states
    monkeypatch.setattr(
        LanguageModel,
        "hidden_states",
        lambda self, x, cache: (lengths.append(x.shape[1]), hidden_states(self, x, cache))[1],
    )
    assert generate(model, prompt, 8, temperature=0.0).tolist() == whole.tolist()
    assert lengths[:5] == ([19, 1, 1, 1, 1] if name == "dynamic-scaling" else [4, 4, 4, 4, 3])
