"""GRPO with a reward that can be checked: a model that learned to sort from demonstrations of which many are wrong.

Imitation also learns the errors: it samples wrong answers as often as it was shown them. The reward, 1 for the sorted
digits and 0 for anything else, does not know the demonstrations. Held-out problems; a control goes on imitating.

python recipes/train_grpo.py --digits 6 --sft-steps 600 --steps 120 --loss-type dapo --epsilon-high 0.28
"""

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import CharTokenizer
from lmxlab.models.llama import llama_config
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import RolloutMonitor, Rollouts
from lmxlab.training.sampling import Completion, Prompt, mean_reward

TOKENIZER = CharTokenizer("0123456789=\n")
(STOP,) = TOKENIZER.encode("\n")


@dataclass
class Options:
    digits: int = 5
    """Of each problem."""
    wrong: float = 0.4
    """Share of demonstrations whose answer is in a random order."""
    sft_steps: int = 300
    """Of imitation, before the reward."""
    steps: int = 60
    """Of GRPO, and of the control."""
    prompts_per_round: int = 16
    group_size: int = 8
    updates: int = 2
    """Optimizer steps on each batch of completions."""
    loss_type: str = "grpo"
    """grpo, dapo, dr_grpo or cispo."""
    epsilon_high: float | None = None
    """Clip higher above (DAPO)."""
    beta: float = 0.01
    """Weight of the penalty on leaving the imitating model."""
    learning_rate: float = 5e-4
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


class Problems:
    """Digits to sort; those that are held out are never drawn."""

    def __init__(self, options: Options):
        self.digits, self.wrong, self.batch_size = options.digits, options.wrong, 64
        draw = random.Random(options.seed)
        self.held_out = {self._any(draw) for _ in range(200)}

    def draw(self, random_source: random.Random) -> str:
        while (problem := self._any(random_source)) in self.held_out:
            pass
        return problem

    def demonstrations(self, seed: int) -> Iterator[tuple[mx.array, mx.array]]:
        """Batches (x, y) for imitation, the prompt not scored."""
        source = random.Random(seed)
        while True:
            texts = []
            for _ in range(self.batch_size):
                problem = self.draw(source)
                answer = source.sample(problem, self.digits) if source.random() < self.wrong else sorted(problem)
                texts.append(TOKENIZER.encode(f"{problem}={''.join(answer)}\n"))
            tokens = mx.array(texts)
            targets = mx.where(mx.arange(tokens.shape[1] - 1) < self.digits, -100, tokens[:, 1:])
            yield tokens[:, :-1], targets

    def prompts(self, seed: int) -> Iterator[Prompt]:
        source = random.Random(seed)
        while True:
            yield as_prompt(self.draw(source))

    def _any(self, source: random.Random) -> str:
        return "".join(source.choice("0123456789") for _ in range(self.digits))


def as_prompt(problem: str) -> Prompt:
    return Prompt(mx.array(TOKENIZER.encode(f"{problem}=")), about="".join(sorted(problem)))


def is_sorted(completions: list[Completion]) -> list[float]:
    """The reward."""
    return [float(completion.text(TOKENIZER) == completion.about) for completion in completions]


def main(options: Options) -> None:
    sft_steps, steps = (20, 2) if options.quick else (options.sft_steps, options.steps)
    problems = Problems(options)
    held_out = [as_prompt(problem) for problem in sorted(problems.held_out)]
    limit = options.digits + 1

    def solved(model: lmxlab.LanguageModel) -> str:
        rates = [
            mean_reward(model, held_out, is_sorted, limit, temperature=t, stop_tokens=[STOP], batch_size=200)
            for t in (1.0, 0.0)
        ]
        return f"solved {rates[0]:6.1%} sampled, {rates[1]:6.1%} greedy"

    mx.random.seed(options.seed)
    sizes = {"d_model": 64, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2, "d_ff": 128, "max_seq_len": 2 * limit}
    model = lmxlab.LanguageModel(llama_config(vocab_size=TOKENIZER.vocab_size, tie_embeddings=True, **sizes))
    imitation = lmxlab.TrainConfig(learning_rate=3e-3, max_steps=sft_steps, warmup_steps=sft_steps // 10)
    lmxlab.Trainer(model, imitation).train(problems.demonstrations(options.seed))
    print(f"{options.wrong:.0%} of the demonstrations are wrong; held-out problems:")
    print(f"imitation, {sft_steps} steps      {solved(model)}")

    settings = {"learning_rate": options.learning_rate, "max_steps": steps, "warmup_steps": 5, "weight_decay": 0.0}
    reference, control = deepcopy(model), deepcopy(model)
    trainer = lmxlab.Trainer(control, lmxlab.TrainConfig(lr_schedule="constant", **settings))
    trainer.train(problems.demonstrations(options.seed + 1))
    print(f"... and {steps} more          {solved(control)}")

    rollouts = Rollouts(
        model,
        problems.prompts(options.seed),
        is_sorted,
        ref_model=reference,
        prompts_per_round=options.prompts_per_round,
        group_size=options.group_size,
        max_tokens=limit,
        stop_tokens=[STOP],
        updates=options.updates,
        beta=options.beta,
        seed=options.seed,
    )
    objective = GRPO(options.beta, 0.2, options.epsilon_high, options.loss_type, max_tokens=limit)
    config = lmxlab.TrainConfig(lr_schedule="constant", **settings)
    history = lmxlab.Trainer(model, config, callbacks=[RolloutMonitor(rollouts)], objective=objective).train(rollouts)
    print(f"... or {steps} of GRPO        {solved(model)}")
    print("\nstep  mean reward  groups without spread  entropy     kl")
    for step in range(0, steps, max(1, steps // 6)):
        told = history[step]
        print(f"{step + 1:4d} {told['mean_reward']:12.3f} {told['flat_groups']:22.1%} {told['entropy']:8.3f}", end="")
        print(f" {told.get('kl', 0.0):6.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
