"""How to spend inference compute: greedy, best of n, majority vote, beams, tree search, refinement at equal FLOPs.

python recipes/test_time_compute.py --budgets 4 16 64 --problems 8 --steps 600

The task: continue a line with words that Shakespeare wrote, none of them twice. The score is the share of letters in
such words, which anybody can check; best of n, tree search and refinement may use it, the others do not know it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, TokenBatches, prepare
from lmxlab.inference import Critique, Meter, budget, budget_table, compare_at_budget
from lmxlab.models.llama import llama_config
from lmxlab.models.sampling import Keys, Sampler

STARTS = ("KING", "My lord", "The ", "What is", "O ", "And then", "I would", "Sweet ")


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    steps: int = 300
    """Training steps of 16 x 64 characters: a model that was trained for longer has less to gain."""
    budgets: tuple[int, ...] = (4, 16)
    """FLOPs for each prompt, in multiples of one greedy answer."""
    tokens: int = 32
    """Characters of an answer."""
    problems: int = 4
    """How many prompts, at most 8."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, tokens, budgets, n = options.steps, options.tokens, options.budgets, options.problems
    if options.quick:
        steps, tokens, budgets, n = 3, 8, (4,), 1
    prepared = prepare(DataConfig(dataset=options.dataset))
    tokenizer = prepared.tokenizer
    words = set(re.findall(r"[A-Za-z]+", tokenizer.decode(prepared.train[:1_000_000].tolist())))
    mx.random.seed(options.seed)
    size = {"d_model": 96, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "d_ff": 256, "max_seq_len": 512}
    model = lmxlab.LanguageModel(llama_config(vocab_size=prepared.vocab_size, **size))
    settings = lmxlab.TrainConfig(learning_rate=3e-3, max_steps=steps, warmup_steps=steps // 10, seed=options.seed)
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    print(f"{model.count_parameters():,} parameters, training loss {losses[-1]['loss']:.2f}")

    def quality(text: Sequence[int]) -> float:
        """The share of letters that belong to known words, each counted once."""
        found = re.findall(r"[A-Za-z]+", tokenizer.decode(list(text)))
        letters = sum(map(len, found))
        known = sum(len(word) for word in {*found} & words if len(word) > 2)
        return known / letters if letters else 0.0

    def value(texts: mx.array) -> mx.array:
        return mx.array([quality(text) for text in texts.tolist()])

    sampler = Sampler(0.8)
    methods = {
        "greedy": budget.greedy(tokens),
        "best of n, likeliest": budget.best_of(tokens, "log_prob", sampler),
        "best of n, verifier": budget.best_of(tokens, value, sampler),
        "majority of first words": budget.majority(
            tokens, lambda text: tuple(tokenizer.decode(text).split()[:1]) or None, sampler
        ),
        "beams": budget.beams(tokens),
        "tree search": budget.tree(tokens, value, sampler, block_tokens=max(1, tokens // 4)),
        "refinement": budget.refinement(tokens, lambda prompt, answer: Critique(quality(prompt + answer)), sampler),
    }
    prompts = [mx.array([tokenizer.encode(start)]) for start in STARTS[:n]]
    meter = Meter(model)
    next(methods["greedy"](meter, prompts[0], Keys(0)))
    print(f"one greedy answer costs {meter.flops:.3g} FLOPs")
    for factor in budgets:
        rows = compare_at_budget(
            model,
            prompts,
            methods,
            lambda prompt, text: quality(text[0].tolist()),
            1.1 * factor * meter.flops,
            seed=options.seed,
        )
        print(f"\n{factor} times that for each of {n} prompts\n\n{budget_table(rows)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
