"""Monte Carlo tree search over blocks of tokens, led by a value function."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from lmxlab.errors import UserError
from lmxlab.inference.rollback import restore, select_rows, snapshot
from lmxlab.inference.sampling import one_prompt, read_prompt, score_texts, with_prompt
from lmxlab.models.base import LanguageModel, check_tokens
from lmxlab.models.decoding import decode
from lmxlab.models.sampling import Keys, Sampler

RULES = ("puct", "uct")


@dataclass
class Node:
    """A beginning of a text, and what the search knows of it.

    Attributes:
        tokens: all new tokens up to here.
        log_prob: mean log-probability of the block that leads here, as it was drawn.
        value: what the value function says of this text.
        end: the stop token that ended it, None if it did not end.
        done: it ended, or has as many tokens as may be.
        total, visits: sum and number of the values of itself and of all below it.
    """

    tokens: list[int]
    log_prob: float = 0.0
    value: float = 0.0
    end: int | None = None
    done: bool = False
    total: float = 0.0
    visits: int = 0
    prior: float = 1.0
    parent: "Node | None" = None
    children: list["Node"] = field(default_factory=list)
    # The caches after all but the last token; they share nothing with those of other nodes but time: what led here
    # was read once.
    state: list[dict[str, Any] | None] | None = None


@dataclass(frozen=True)
class SearchResult:
    """The best text found, (1, L) with its prompt; its value; whether it is whole; the root of the tree."""

    text: mx.array
    value: float
    done: bool
    root: Node


def tree_search(
    model: LanguageModel,
    prompt: mx.array,
    value_fn: Callable[[mx.array], mx.array],
    *,
    n_simulations: int = 32,
    max_tokens: int = 64,
    block_tokens: int = 8,
    n_children: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    exploration: float = 1.0,
    rule: str = "puct",
    stop_tokens: Sequence[int] | None = None,
    seed: int | None = None,
) -> SearchResult:
    """Searches for the text that `value_fn` values most.

    A simulation walks from the prompt to a leaf, always to the child with the best sum of value and exploration bonus,
    draws `n_children` blocks that could follow it as one batch, asks for their values, and adds these to every node on
    the way. Values are scaled to [0, 1] by the least and greatest seen. The bonus of a child with n of its parent's N
    visits is c * prior * sqrt(N) / (1 + n) ("puct", 1712.01815, the prior from the children's own probabilities) or
    c * sqrt(ln N / n) ("uct", Kocsis and Szepesvari 2006). After its share of the simulations, one for each block of a
    text, the walk starts from the child that was visited most, as a player moves; at the end of a text it starts at the
    prompt again. Branches that are searched to the end are not visited again.

    Args:
        prompt: token ids (1, T) or (T,).
        value_fn: texts (n, L), unfinished ones among them -> (n,) or (n, 1), more is better; a RewardModel, a verifier.
        n_simulations: how many leaves to expand.
        max_tokens: new tokens of a text.
        block_tokens, n_children: tokens of a node, and how many are drawn at a leaf (equal ones are one).
        temperature, top_k, top_p, stop_tokens, seed: as in `generate`.
        exploration: c.

    Returns:
        The whole text of greatest value; the unfinished one if there were fewer simulations than blocks.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "block_tokens": block_tokens, "n_children": n_children}
    options |= {"exploration": exploration, "rule": rule, "stop_tokens": stop_tokens, "keys": Keys(seed)}
    if n_simulations < 1:
        raise UserError(f"n_simulations is {n_simulations}; it must be at least 1")
    per_block = max(1, n_simulations // -(-max_tokens // max(block_tokens, 1)))
    sampler = Sampler(temperature, top_k, top_p)
    *_, result = itertools.islice(
        simulations(model, prompt, value_fn, sampler, per_block=per_block, **options), n_simulations
    )
    return result


def simulations(
    model: LanguageModel,
    prompt: mx.array,
    value_fn: Callable[[mx.array], mx.array],
    sampler: Sampler,
    *,
    max_tokens: int,
    block_tokens: int,
    n_children: int,
    per_block: int,
    exploration: float,
    rule: str,
    stop_tokens: Sequence[int] | None,
    keys: Keys,
) -> Iterator[SearchResult]:
    """What `tree_search` has found after each simulation, until the tree is searched whole.

    Args:
        per_block: simulations before the walk starts one block further on.
    """
    prompt = one_prompt(prompt)
    least = min(max_tokens, block_tokens, n_children)
    if least < 1 or rule not in RULES:
        raise UserError(
            f"max_tokens, block_tokens and n_children are {max_tokens}, {block_tokens} and {n_children}, and the rule "
            f"{rule!r}; give at least 1 of each and a rule of {', '.join(RULES)}"
        )
    check_tokens(prompt, model.config.vocab_size)
    root = Node([], state=read_prompt(model, prompt))
    found: list[Node] = []
    start, since = root, 0
    while not root.done:
        if since >= per_block or start.done:
            start, since = _next_start(start, root), 0
        since += 1
        leaf = _select(start, _scale(found), exploration, rule)
        n_new = min(block_tokens, max_tokens - len(leaf.tokens))
        leaf.children = _expand(model, prompt, leaf, n_new, n_children, sampler, frozenset(stop_tokens or ()), keys)
        values = score_texts(value_fn, prompt, [(child.tokens, child.end) for child in leaf.children])
        for child, value in zip(leaf.children, values, strict=True):
            child.value, child.done = value, child.end is not None or len(child.tokens) == max_tokens
            node: Node | None = child
            while node is not None:
                node.total, node.visits, node = node.total + value, node.visits + 1, node.parent
        found += leaf.children
        _close(leaf)
        best = max(found, key=lambda node: (_whole(node, max_tokens), node.value))
        yield SearchResult(with_prompt(prompt, best.tokens), best.value, _whole(best, max_tokens), root)


def _next_start(start: Node, root: Node) -> Node:
    """The child of `start` that was visited most, of those that can be searched on; the root if there is none."""
    return max((child for child in start.children if not child.done), key=lambda child: child.visits, default=root)


def _whole(node: Node, max_tokens: int) -> bool:
    return node.end is not None or len(node.tokens) == max_tokens


def _close(node: Node | None) -> None:
    """Marks nodes under which nothing is left to search."""
    while node is not None and node.children and all(child.done for child in node.children):
        node.done, node.state, node = True, None, node.parent


def _scale(found: list[Node]) -> tuple[float, float]:
    values = [node.value for node in found]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _select(node: Node, limits: tuple[float, float], exploration: float, rule: str) -> Node:
    """The leaf that a simulation expands."""
    low, high = limits

    def promise(child: Node, parent_visits: int) -> float:
        value = (child.total / child.visits - low) / (high - low) if high > low else 0.5
        if rule == "uct":
            return value + exploration * math.sqrt(math.log(parent_visits) / child.visits)
        return value + exploration * child.prior * math.sqrt(parent_visits) / (1 + child.visits)

    while node.children:
        visits = node.visits
        node = max((child for child in node.children if not child.done), key=lambda child: promise(child, visits))
    return node


def _expand(
    model: LanguageModel,
    prompt: mx.array,
    leaf: Node,
    n_new: int,
    n_children: int,
    sampler: Sampler,
    stop: frozenset[int],
    keys: Keys,
) -> list[Node]:
    """The different blocks among `n_children` draws from the leaf, as one batch."""
    cache = model.make_cache()
    assert leaf.state is not None
    restore(cache, leaf.state)
    select_rows(cache, [0] * n_children)
    rows = mx.repeat(with_prompt(prompt, leaf.tokens), n_children, axis=0)
    drawn, log_probs = [], []
    for step in decode(model, rows, n_new, sampler, keys=keys, cache=cache):
        drawn.append(step.tokens)
        log_probs.append(step.log_probs())
    blocks: list[list[int]] = mx.stack(drawn, axis=1).tolist()  # type: ignore[assignment]
    sums: list[list[float]] = mx.stack(log_probs, axis=1).tolist()  # type: ignore[assignment]
    children: dict[tuple, Node] = {}
    for i, (block, log_prob) in enumerate(zip(blocks, sums, strict=True)):
        at = next((k for k, token in enumerate(block) if token in stop), None)
        kept, end = (block, None) if at is None else (block[:at], block[at])
        if (*kept, end) in children:
            continue
        n_drawn = len(kept) + (end is not None)
        child = Node([*leaf.tokens, *kept], sum(log_prob[:n_drawn]) / n_drawn, end=end, parent=leaf)
        if end is None:
            select = model.make_cache()
            restore(select, snapshot(cache))
            select_rows(select, [i])
            child.state = snapshot(select)
        children[(*kept, end)] = child
    weights = [math.exp(child.log_prob) for child in children.values()]
    for child, weight in zip(children.values(), weights, strict=True):
        child.prior = weight / sum(weights)
    return list(children.values())
