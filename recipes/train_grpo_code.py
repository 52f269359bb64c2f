"""A small model learns to program from tests: fine-tuned on some verified solutions, then GRPO on what passes.

It begins with some problems whose solutions are given. Of many more only the tests are known: for GRPO that is enough.
The rival goes on with fine-tuning on the given solutions for the same compute.

python recipes/train_grpo_code.py --sft-steps 400 --rounds 120 --held-out 200
"""

import copy
import time
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.core import BlockConfig, ModelConfig
from lmxlab.data import CharTokenizer
from lmxlab.data.completions import CompletionBatches, Example
from lmxlab.errors import MissingExtraError
from lmxlab.eval.problems import generate_problems
from lmxlab.eval.sandbox import Limits, Sandbox
from lmxlab.eval.verifiable import ProblemPrompts, ProgramReward, solved, verified_examples
from lmxlab.training.callbacks import Callback
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import Rollouts
from lmxlab.training.sampling import Score


@dataclass
class Options:
    family: str = "arithmetic"
    """Of problems: arithmetic or string."""
    difficulty: int = 2
    """Most operations of a problem; the curriculum begins with one."""
    solutions: int = 200
    """Problems whose solution is given."""
    problems: int = 1000
    """Problems whose tests are known, among them those."""
    sft_steps: int = 200
    """Of fine-tuning, with 32 solutions each."""
    rounds: int = 25
    """Of GRPO."""
    prompts: int = 8
    """Problems of a round."""
    group: int = 8
    """Programs for each of them."""
    updates: int = 1
    """Optimizer steps on each round."""
    all_or_nothing: bool = False
    """Reward only programs that pass all tests, instead of the share that they pass."""
    warmup: float = 0.25
    """Share of the rounds after which problems of every difficulty come."""
    learning_rate: float = 3e-3
    grpo_learning_rate: float = 3e-4
    layers: int = 2
    width: int = 96
    held_out: int = 60
    """Problems to be judged by, which no training sees."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


class Compute(Callback):
    """Counts tokens that pass through the model: once in sampling, three times in training (forward and backward)."""

    def __init__(self, rollouts: Rollouts):
        self.rollouts, self.token_passes = rollouts, 0

    def on_step_end(self, step: int, metrics: dict) -> None:
        drawn = self.rollouts.completions
        longest = max(completion.prompt.size + completion.tokens.size for completion in drawn)
        sampling = longest if (step - 1) % self.rollouts.updates == 0 else 0
        self.token_passes += len(drawn) * (sampling + 3 * (-(-longest // 32) * 32))


def fine_tune(model: lmxlab.LanguageModel, examples: list[Example], steps: int, options: Options) -> int:
    """Trains on the solutions; returns the token passes."""
    settings = lmxlab.TrainConfig(options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed)
    batches = CompletionBatches(examples, 32, seed=options.seed)
    losses = lmxlab.Trainer(model, settings).train(batches)
    print(f"  {steps} steps: loss {losses[0]['loss']:.3f} -> {losses[-1]['loss']:.3f}")
    return 3 * next(batches)[0].size * steps


def reinforce(model: lmxlab.LanguageModel, prompts: ProblemPrompts, reward: Score, options: Options, stop: int) -> int:
    """GRPO on problems with tests; returns the token passes."""
    rollouts = Rollouts(
        model,
        prompts,
        reward,
        prompts_per_round=options.prompts,
        group_size=options.group,
        max_tokens=24,
        stop_tokens=[stop],
        updates=options.updates,
        beta=0.0,
        seed=options.seed,
    )
    steps = prompts.n_rounds * options.updates
    settings = lmxlab.TrainConfig(options.grpo_learning_rate, max_steps=steps, warmup_steps=0, weight_decay=0.0)
    compute = Compute(rollouts)
    history = lmxlab.Trainer(model, settings, callbacks=[compute], objective=GRPO(beta=0.0)).train(rollouts)
    rewards = [metrics["mean_reward"] for metrics in history]
    width = max(1, len(rewards) // 5)
    curve = [sum(rewards[i : i + width]) / len(rewards[i : i + width]) for i in range(0, len(rewards), width)]
    print(f"  mean pass rate, from easy to hard problems: {' '.join(f'{value:.2f}' for value in curve)}")
    print(f"  groups without spread, which teach nothing: {rollouts.flat_groups} of {rollouts.groups}")
    return compute.token_passes


def main(options: Options) -> None:
    small = options.quick
    sft_steps, rounds, held_out = (5, 2, 4) if small else (options.sft_steps, options.rounds, options.held_out)
    levels = (1, options.difficulty)
    train = generate_problems(100 if small else options.problems, options.family, levels, seed=options.seed)
    test = generate_problems(held_out, options.family, levels, seed=options.seed, split="held_out")
    tokenizer = CharTokenizer("".join(map(chr, range(32, 127))) + "\n", bos=True)
    block = BlockConfig(
        attention="gqa",
        ffn="gated",
        norm="rms_norm",
        position="rope",
        d_model=options.width,
        n_heads=4,
        d_ff=8 * round(options.width / 3),
        bias=False,
        max_seq_len=256,
    )
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(ModelConfig(block, tokenizer.vocab_size, options.layers))
    print(f"{model.count_parameters():,} parameters; a problem and its solution:\n{train[0].solution}")
    with Sandbox(limits=Limits(wall_s=5, cpu_s=2)) as sandbox:
        reward = ProgramReward(sandbox, tokenizer, all_or_nothing=options.all_or_nothing)

        def judge(before: np.ndarray | None = None) -> np.ndarray:
            counts = np.array(solved(model, test, reward, samples=8, seed=options.seed))
            line = f"  {held_out} held-out problems: pass@1 {counts.mean() / 8:.3f}, pass@8 {(counts > 0).mean():.3f}"
            if before is not None:  # paired by problem
                gain = (counts - before) / 8
                line += (
                    f"; pass@1 {gain.mean():+.3f} +- {1.96 * gain.std(ddof=1) / len(gain) ** 0.5:.3f} over the first"
                )
            print(line)
            return counts

        examples = verified_examples(train[: options.solutions], reward)
        print(f"Fine-tuning on {len(examples)} verified solutions")
        fine_tune(model, examples, sft_steps, options)
        before = judge()
        weights = copy.deepcopy(model.parameters())

        print(f"GRPO with the tests of {len(train)} problems, {rounds} rounds")
        begun = time.perf_counter()
        (newline,) = tokenizer.encode("\n")
        prompts = ProblemPrompts(train, tokenizer, rounds, options.prompts, warmup=options.warmup, seed=options.seed)
        passes = reinforce(model, prompts, reward, options, newline)
        seconds = time.perf_counter() - begun
        print(f"  {reward.programs:,} programs so far, {reward.ran:,} of them run; {seconds:.0f} s")
        judge(before)

        model.update(weights)
        steps = max(1, round(passes / (3 * 32 * 64)))
        print("Instead: more fine-tuning on the same solutions, for the same compute")
        fine_tune(model, examples, steps, options)
        judge(before)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except MissingExtraError as error:
        print(f"Left out: {error}")
