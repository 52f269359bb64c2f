"""Tree search finds what the value function wants, more often than drawing as many texts at random does."""

import mlx.core as mx
import pytest
from tests.models.architectures import build, tokens

from lmxlab.inference.reward_model import RewardModel
from lmxlab.inference.sampling import sample_rows
from lmxlab.inference.tree_search import Node, tree_search
from lmxlab.models.sampling import Keys, Sampler

from .test_speculative import TARGETS

N_PROMPT = 4


def high_tokens(texts: mx.array) -> mx.array:
    """The share of new tokens in the upper half of the vocabulary."""
    return (texts[:, N_PROMPT:] >= 30).astype(mx.float32).mean(axis=1)


def nodes(root: Node) -> list[Node]:
    return [root, *(node for child in root.children for node in nodes(child))]


@pytest.mark.parametrize(("name", "rule"), [("llama", "puct"), ("gemma3", "uct")])
def test_it_beats_as_many_draws_at_random(name: str, rule: str) -> None:
    model, prompt = build(TARGETS[name](), 0.05), tokens(1, N_PROMPT)
    settings = {"max_tokens": 24, "block_tokens": 3, "n_children": 4, "rule": rule, "exploration": 0.3}
    searched, drawn = [], []
    for seed in range(3):
        result = tree_search(model, prompt, high_tokens, n_simulations=32, seed=seed, **settings)
        assert result.done and result.text.shape == (1, N_PROMPT + 24)
        assert result.value == pytest.approx(high_tokens(result.text).item())
        searched.append(result.value)
        samples = sample_rows(model, prompt, 32 * 4 * 3 // 24, 24, Sampler(), keys=Keys(seed))  # as many new tokens
        texts = mx.array([prompt[0].tolist() + sample.tokens for sample in samples])
        drawn.append(high_tokens(texts).max().item())
    assert sum(searched) / 3 > sum(drawn) / 3 + 0.05


def test_values_and_visits_are_those_of_everything_below() -> None:
    model, prompt = build(TARGETS["llama"](), 0.05), tokens(1, N_PROMPT)
    result = tree_search(model, prompt, high_tokens, n_simulations=10, max_tokens=9, block_tokens=3, seed=1)
    for node in nodes(result.root)[1:]:
        below = nodes(node)
        assert node.visits == len(below)
        assert node.total == pytest.approx(sum(each.value for each in below))
        text = mx.array([prompt[0].tolist() + node.tokens])
        assert node.value == pytest.approx(high_tokens(text).item())
        assert node.tokens[: len(node.parent.tokens)] == node.parent.tokens
        if node.children:
            assert sum(child.prior for child in node.children) == pytest.approx(1)
    best = max((node for node in nodes(result.root) if len(node.tokens) == 9), key=lambda node: node.value)
    assert result.done and result.value == pytest.approx(best.value)


@pytest.mark.parametrize("name", ["llama", "gemma3", "recurrent", "hybrid"])
def test_a_branch_goes_on_from_its_own_prefix(name: str) -> None:
    """Greedy blocks are the greedy text, whatever the caches of siblings were."""
    model, prompt = build(TARGETS[name]()), tokens(1, N_PROMPT)
    result = tree_search(model, prompt, high_tokens, n_simulations=9, max_tokens=12, block_tokens=2, seed=0)
    for node in nodes(result.root)[1:]:
        text = mx.array([prompt[0].tolist() + node.tokens])
        logits = model(text)[0][0].astype(mx.float32)
        log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        new = [log_probs[at - 1, text[0, at]].item() for at in range(text.shape[1] - 2, text.shape[1])]
        assert node.log_prob == pytest.approx(sum(new) / 2, abs=1e-3)


def test_a_stop_token_ends_a_branch() -> None:
    model, prompt, stop = build(TARGETS["llama"](), 0.05), tokens(1, N_PROMPT), list(range(15))
    settings = {"n_simulations": 30, "max_tokens": 12, "block_tokens": 4, "stop_tokens": stop, "seed": 0}
    reward = RewardModel(build(TARGETS["llama"]()))
    result = tree_search(model, prompt, reward, **settings)
    ended = [node for node in nodes(result.root) if node.end is not None]
    assert ended and all(node.end in stop and not node.children for node in ended)
    for node in nodes(result.root)[1:]:
        assert not set(node.tokens) & set(stop)
        text = mx.array([prompt[0].tolist() + node.tokens])
        assert node.value == pytest.approx(reward(text).item(), abs=1e-4)  # read at its own last token


def test_the_search_is_over_when_the_tree_is() -> None:
    model, prompt = build(TARGETS["llama"]()), tokens(1, N_PROMPT)
    result = tree_search(model, prompt, high_tokens, n_simulations=50, max_tokens=4, block_tokens=2, temperature=0.0)
    assert len(nodes(result.root)) == 3 and result.root.done  # greedy: one child each


@pytest.mark.parametrize("settings", [{"n_simulations": 0}, {"block_tokens": 0}, {"rule": "best"}, {"n_children": 0}])
def test_what_cannot_be_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=str(*settings.values())):
        tree_search(build(TARGETS["llama"]()), tokens(1, 4), high_tokens, **settings)
