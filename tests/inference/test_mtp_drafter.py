"""Heads draft what they would in a pass over the whole text, whatever was accepted before."""

import dataclasses

import mlx.core as mx
import pytest
from tests.models.architectures import build, gap, tokens

from lmxlab.core.mtp import MTPHead
from lmxlab.inference.mtp_drafter import MTPDrafter
from lmxlab.inference.speculative import speculative_decode
from lmxlab.models.generate import generate
from lmxlab.models.mtp import mtp_logits
from lmxlab.models.sampling import Keys, Sampler

from .test_speculative import ATTENTION, RECURRENT, TARGETS

KINDS = {"attention": ATTENTION, "recurrent": RECURRENT}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n_prompt", [1, 2, 5])
def test_drafts_are_those_of_a_full_pass(kind: str, n_prompt: int) -> None:
    model = build(TARGETS["llama"]())
    heads = [MTPHead(32, KINDS[kind]) for _ in range(3)]
    drafter, sampler = MTPDrafter(model, heads), Sampler(temperature=0.7)
    text = tokens(1, n_prompt)[0].tolist()
    n_read, new = 0, text
    for n_accepted, n_tokens in ((0, 3), (1, 3), (3, 1), (2, 2), (0, 3), (3, 3)):
        states = model.hidden_states(mx.array([text]))[0][:, n_read:-1]
        n_read = len(text) - 1
        draft = drafter.draft(new, states if states.shape[1] else None, n_tokens, sampler, Keys(len(text)))
        if len(text) > 1:
            drafted = draft.tokens[0].tolist()
            assert len(drafted) == n_tokens
            # The full pass over the tokens that were drawn.
            all_tokens, below = text + drafted, model.hidden_states(mx.array([text]))[0][:, :-1]
            for k in range(n_tokens):
                below = heads[k](below, model.embed(mx.array([all_tokens[k + 1 : k + len(text)]])))
                expected = sampler.probabilities(mtp_logits(model, below[:, -1]))
                assert gap(draft.probabilities[k : k + 1], expected) <= 1e-4
        new = tokens(1, n_accepted + 1)[0].tolist()
        text = text + new


@pytest.mark.parametrize("target", ["llama", "gemma3", "hybrid"])
def test_the_text_is_the_targets_own(target: str) -> None:
    model, prompt = build(TARGETS[target]()), tokens(1, 5)
    for n_draft in (1, 2, 5):
        drafter = MTPDrafter(model, [MTPHead(32, ATTENTION) for _ in range(2)])
        text, rates = speculative_decode(model, drafter, prompt, 20, n_draft)
        assert text.tolist() == generate(model, prompt, 20, temperature=0.0).tolist()
        assert rates["total_drafted"] >= 19 / 3


def test_heads_that_know_the_text_are_accepted() -> None:
    """A model without layers says after token x always f(x); a head that hands on its embedding says f(f(x))."""
    model = build(TARGETS["llama"]())
    model.blocks = []
    head = MTPHead(32, dataclasses.replace(ATTENTION, bias=False))
    head.block.attention.o_proj.weight = mx.zeros_like(head.block.attention.o_proj.weight)
    head.block.ffn.down.weight = mx.zeros_like(head.block.ffn.down.weight)
    head.proj.weight = mx.concatenate([mx.zeros((32, 32)), mx.eye(32)], axis=1)  # norms leave the direction
    _, rates = speculative_decode(model, MTPDrafter(model, [head, head]), tokens(1, 4), 30, 2)
    assert rates["acceptance_rate"] == 1


def test_no_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="no MTP heads"):
        MTPDrafter(build(TARGETS["llama"]()), [])
