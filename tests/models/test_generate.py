import dataclasses
from typing import Any

import mlx.core as mx
import pytest

from lmxlab.errors import UserError
from lmxlab.models import decoding
from lmxlab.models.base import LanguageModel
from lmxlab.models.generate import generate, stream_generate
from lmxlab.models.gpt import gpt2_tiny, gpt_tiny
from lmxlab.models.llama import llama_tiny

from .architectures import ARCHITECTURES, build, tokens

GREEDY: dict[str, Any] = {"temperature": 0.0}


def greedy_by_hand(model: LanguageModel, prompt: mx.array, n: int) -> list[list[int]]:
    """The slow way: the whole text anew for each token."""
    for _ in range(n):
        logits, _ = model(prompt)
        prompt = mx.concatenate([prompt, mx.argmax(logits[:, -1:], axis=-1).astype(prompt.dtype)], axis=1)
    return prompt.tolist()


@pytest.mark.parametrize("config", [gpt_tiny(), gpt2_tiny(), llama_tiny()], ids=["gpt", "gpt2", "llama"])
def test_greedy_decoding_takes_the_likeliest_token_of_the_full_pass(config: Any) -> None:
    model, prompt = build(config), tokens(3, 4)
    expected = greedy_by_hand(model, prompt, 30)
    assert generate(model, prompt, 30, **GREEDY).tolist() == expected
    assert list(stream_generate(model, prompt[1:2], 30, **GREEDY)) == expected[1][4:]


def test_no_tokens_asked_is_the_prompt() -> None:
    model, prompt = build(gpt_tiny()), tokens(2, 4)
    assert mx.array_equal(generate(model, prompt, max_tokens=0), prompt)
    assert list(stream_generate(model, prompt[:1], max_tokens=0)) == []


def test_one_row_may_come_without_a_batch() -> None:
    model, prompt = build(gpt_tiny()), tokens(1, 4)
    assert generate(model, prompt[0], 5, **GREEDY).tolist() == generate(model, prompt, 5, **GREEDY)[0].tolist()
    assert all(type(token) is int for token in stream_generate(model, prompt[0], 5, **GREEDY))
    with pytest.raises(ValueError, match="this one has 2 rows"):
        next(stream_generate(model, tokens(2, 4), 5))


def test_a_stop_token_ends_a_row_and_is_not_emitted() -> None:
    model, prompt = build(llama_tiny()), tokens(1, 4)
    new = generate(model, prompt, 20, **GREEDY)[0, 4:].tolist()
    stop = new[7]
    end = new.index(stop)
    assert generate(model, prompt, 20, stop_tokens=[stop], **GREEDY)[0, 4:].tolist() == new[:end]
    assert list(stream_generate(model, prompt, 20, stop_tokens=[stop], **GREEDY)) == new[:end]


def test_rows_stop_each_on_their_own() -> None:
    model, prompt = build(llama_tiny()), tokens(2, 4)
    a, b = generate(model, prompt, 20, **GREEDY)[:, 4:].tolist()
    stop = next(token for token in a if token not in b)
    end = a.index(stop)
    out = generate(model, prompt, 20, stop_tokens=[stop], **GREEDY)[:, 4:].tolist()
    assert out[1] == b
    assert out[0] == a[:end] + [stop] * (20 - end)


EVERY_KIND = sorted({*ARCHITECTURES} - {"dynamic-scaling", "window-dynamic-scaling"})


@pytest.mark.parametrize("name", EVERY_KIND)
def test_prompts_of_different_lengths_are_decoded_together_as_each_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 4)  # so that whole parts of the short prompts are padding
    model = build(ARCHITECTURES[name]())
    prompts: list[Any] = [tokens(1, n)[0] for n in (1, 13, 6)]
    settings = {"repetition_penalty": 1.2, "logit_bias": {3: -1.0}, **GREEDY}
    alone = [generate(model, prompt, 12, **settings).tolist() for prompt in prompts]
    assert [row.tolist() for row in generate(model, prompts, 12, **settings)] == alone
    stop = alone[1][15]
    ended = []
    for row, prompt in zip(alone, prompts, strict=True):
        new = row[prompt.size :]
        ended.append(row[: prompt.size] + (new[: new.index(stop)] if stop in new else new))
    stopped = generate(model, [prompt.tolist() for prompt in prompts], 12, stop_tokens=[stop], **settings)
    assert [row.tolist() for row in stopped] == ended


def test_a_list_of_prompts_needs_tokens_in_each() -> None:
    for prompts in ([], [mx.array([1]), mx.zeros((0,), mx.int32)], [mx.array([[1]])]):
        with pytest.raises(ValueError, match="at least one token"):
            generate(build(gpt_tiny()), prompts)
    with pytest.raises(ValueError, match="rows cannot have padding; decode each"):
        generate(build(ARCHITECTURES["dynamic-scaling"]()), [mx.array([1]), mx.array([1, 2])])


def test_a_cache_that_was_made_without_padding_is_refused_for_prompts_of_different_lengths() -> None:
    model, prompts = build(llama_tiny()), [mx.array([1, 2, 3, 4]), mx.array([5, 6])]
    with pytest.raises(UserError, match="different lengths"):
        generate(model, prompts, cache=model.make_cache())
    together = generate(model, prompts, 4, 0.0, cache=model.make_cache(left_padding=[0, 2]))
    assert [row.tolist() for row in together] == [row.tolist() for row in generate(model, prompts, 4, 0.0)]


def test_padding_leaves_a_window_with_the_tokens_before_it() -> None:
    model, (short, long) = build(llama_tiny()), (tokens(1, 2)[0], tokens(1, 6)[0])
    rows = generate(model, [short, long], max_tokens=8, temperature=0.0, context=8)
    assert rows[1].tolist() == generate(model, long, max_tokens=8, temperature=0.0, context=8).tolist()
    # After three tokens the window is full: the last four of each row stay, all of them text.
    begun = generate(model, short, max_tokens=3, temperature=0.0)
    rest = generate(model, begun[-4:], max_tokens=5, temperature=0.0)
    assert rows[0].tolist() == [begun[0].item(), *rest.tolist()]


def test_equal_seeds_give_equal_texts() -> None:
    model, prompt = build(gpt_tiny()), tokens(2, 4)
    texts = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        texts.append(generate(model, prompt, 20, top_p=0.9).tolist())
    assert texts[0] == texts[1] != texts[2]
    mx.random.seed(1)
    single = generate(model, prompt[:1], 20, top_k=5)[0, 4:].tolist()
    mx.random.seed(1)
    assert list(stream_generate(model, prompt[:1], 20, top_k=5)) == single


def test_dropout_is_off_and_the_training_flag_restored() -> None:
    config = gpt_tiny()
    model = build(dataclasses.replace(config, block=dataclasses.replace(config.block, dropout=0.5)))
    prompt = tokens(1, 4)
    assert generate(model, prompt, 10, **GREEDY).tolist() == generate(model, prompt, 10, **GREEDY).tolist()
    stream = stream_generate(model, prompt, 10, **GREEDY)
    next(stream)
    assert all(module.training for module in model.modules())


def test_the_penalty_counts_the_prompt_and_the_output() -> None:
    model, prompt = build(llama_tiny()), mx.array([[1, 2, 3, 4]])
    out = generate(model, prompt, 60, repetition_penalty=1e6, **GREEDY)[0].tolist()
    assert len(set(out)) == len(out)  # with so large a penalty nothing comes twice


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (mx.zeros((1, 0), mx.int32), {}, "at least one token"),
        (mx.array([[256]]), {}, "vocabulary has 256 tokens"),
        (mx.array([[-1]]), {}, "Token ids reach from -1"),
        (mx.array([[1]]), {"max_tokens": -1}, "max_tokens is -1"),
        (mx.array([[1]]), {"max_tokens": 2.5}, "max_tokens is 2.5; it must be an integer"),
        (mx.array([[1]]), {"cache": [], "cache_bits": 8}, "cache_bits is 8, but the cache is there already"),
        (mx.array([[1.5]]), {}, "Token ids are mlx.core.float32"),
        (mx.array([[1]]), {"stop_tokens": 5}, "stop_tokens is 5; give a list"),
        (mx.array([[1]]), {"seed": -1}, "seed is -1; it must be an integer"),
        (mx.array([[1]]), {"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        (mx.array([[1]]), {"temperature": -1.0}, "temperature is -1"),
        (mx.array([[1]]), {"top_k": 2.5}, "top_k is 2.5; it must be an integer"),
        (mx.array([[1]]), {"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
        (mx.array([[1]]), {"logit_bias": {3: float("nan")}}, "logit_bias is nan for token 3"),
        (mx.array([[1]]), {"logit_bias": {3: float("inf")}}, "logit_bias is inf for token 3"),
    ],
)
def test_bad_input_is_refused(prompt: mx.array, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(build(gpt_tiny()), prompt, **settings)


def test_decoding_past_a_learned_table_says_so() -> None:
    with pytest.raises(ValueError, match="longer than max_seq_len 128"):
        generate(build(gpt2_tiny()), tokens(1, 100), max_tokens=60)
