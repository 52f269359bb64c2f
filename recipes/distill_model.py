"""A teacher, a student from scratch and the same student distilled, at equal FLOPs.

python recipes/distill_model.py --kind reverse --temperature 2 --top-k 32 --train-tokens 100000

The students have little text of their own; the teacher's comes from all of it. What a step of a student costs: three
forward passes of its own (one, and two for the backward pass), and one of the teacher, where it is asked online. On
disk the teacher is asked once for each token of the students' text, however many epochs they make of it. What the
teacher's own training cost is printed, and charged to nobody.
"""

import tempfile
from dataclasses import dataclass
from typing import Any

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.experiments.flops import estimate_flops_per_step, estimate_flops_per_token
from lmxlab.models.llama import llama_config
from lmxlab.training.distillation import Distillation
from lmxlab.training.teacher_targets import TeacherTargets, write_targets


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    train_tokens: int = 10000
    """How much text the students have."""
    kind: str = "forward"
    """forward, reverse or jsd: see docs/distillation.md."""
    temperature: float = 1.0
    alpha: float = 0.9
    """The teacher's share of the loss."""
    top_k: int = 8
    """Logits per token that the teacher leaves on disk."""
    teacher_width: int = 128
    student_width: int = 64
    teacher_steps: int = 200
    student_steps: int = 250
    """Of the student from scratch; the others make as many as cost the same."""
    batch_size: int = 16
    seq_len: int = 64
    learning_rate: float = 3e-3
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def build(options: Options, vocab_size: int, width: int) -> lmxlab.LanguageModel:
    mx.random.seed(options.seed)
    return lmxlab.LanguageModel(llama_config(vocab_size, width, 4, 2, 2, 3 * width, 512, tie_embeddings=True))


def train(
    options: Options, prepared: PreparedData, model: lmxlab.LanguageModel, name: str, steps: int, data: Any, **how: Any
) -> None:
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    lmxlab.Trainer(model, settings, **how).train(data)
    held_out = eval_batches(prepared.val, options.batch_size, options.seq_len, 2000 if options.quick else 30000)
    loss = lmxlab.Trainer(model, settings).evaluate(held_out)["eval_loss"]
    print(f"{name:<24} {model.count_parameters():>9,} parameters {steps:>5} steps   loss on unseen text {loss:.3f}")


def main(options: Options) -> None:
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    shape = options.batch_size, options.seq_len
    teacher_steps, student_steps = (3, 12) if options.quick else (options.teacher_steps, options.student_steps)
    little = prepared.train[: options.train_tokens]
    teacher = build(options, prepared.vocab_size, options.teacher_width)
    train(options, prepared, teacher, "teacher", teacher_steps, TokenBatches(prepared.train, *shape, options.seed))
    student = build(options, prepared.vocab_size, options.student_width)

    own = estimate_flops_per_step(student, *shape, attention_len=options.seq_len)
    asked = estimate_flops_per_token(teacher.config, options.seq_len) * options.batch_size * options.seq_len
    budget = student_steps * own
    teacher_cost = teacher_steps * estimate_flops_per_step(teacher, *shape, attention_len=options.seq_len)
    print(f"Each student has {budget:.2e} FLOPs; the teacher took {teacher_cost:.2e}.")
    train(
        options, prepared, student, "student, from scratch", student_steps, TokenBatches(little, *shape, options.seed)
    )

    settings = {"temperature": options.temperature, "alpha": options.alpha, "kind": options.kind}
    student = build(options, prepared.vocab_size, options.student_width)
    objective = Distillation(teacher, **settings)
    data: Any = TokenBatches(little, *shape, options.seed)
    train(
        options, prepared, student, "student, teacher online", int(budget // (own + asked)), data, objective=objective
    )

    with tempfile.TemporaryDirectory() as folder:
        once = list(eval_batches(little, *shape))  # the text once; students meet it again and again
        full = [batch for batch in once if batch[0].shape == shape]
        write_targets(folder, teacher, full, min(options.top_k, prepared.vocab_size), options.temperature)
        student = build(options, prepared.vocab_size, options.student_width)
        targets = TeacherTargets(folder, options.seed)
        steps = max(1, int((budget - len(full) * asked) // own))
        objective = Distillation(targets, **settings)
        train(options, prepared, student, "student, teacher on disk", steps, targets, objective=objective)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
