"""Train a small model on Shakespeare, then ask it everything that lmxlab can ask: text, tasks, programs.

python recipes/evaluate_model.py --arch gemma3_tiny --steps 500 --tokenizer bpe:512
"""

import dataclasses
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.errors import MissingExtraError
from lmxlab.eval import bits_per_byte, evaluate_pass_at_k, perplexity
from lmxlab.eval.harness import harness_model, run_tasks
from lmxlab.models.families import resolve
from lmxlab.models.text import stream_text


@dataclass
class Options:
    arch: str = "llama_tiny"
    """A preset or an architecture of `lmxlab list`."""
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    steps: int = 200
    """Training steps of 16 x 64 tokens."""
    tasks: tuple[str, ...] = ("lmxlab",)
    """Tasks of lm-eval; `lmxlab` means those that need no network."""
    limit: int = 50
    """Questions of each task."""
    samples: int = 20
    """Texts drawn for pass@k."""
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, limit, samples = (3, 2, 2) if options.quick else (options.steps, options.limit, options.samples)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(dataclasses.replace(resolve(options.arch), vocab_size=prepared.vocab_size))
    settings = lmxlab.TrainConfig(learning_rate=3e-3, max_steps=steps, warmup_steps=steps // 10, seed=options.seed)
    print(f"{options.arch}: {model.count_parameters():,} parameters, {steps} steps on {prepared.info['source']}")
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    print(f"training loss {losses[0]['loss']:.2f} -> {losses[-1]['loss']:.2f}")

    print("\nText that it has not seen")
    # (B, T) inputs and targets shifted by one: together the T + 1 tokens of each window.
    windows = [mx.concatenate([x, y[:, -1:]], axis=1) for x, y in eval_batches(prepared.val, 16, 64, limit * 640)]
    print(f"  perplexity    {perplexity(model, windows):.2f} per token")
    print(f"  bits per byte {bits_per_byte(model, windows, token_bytes=prepared.token_bytes):.3f}")

    print("\nTasks of lm-eval")
    try:
        lm = harness_model(model, prepared.tokenizer, max_length=128)
        for task, values in run_tasks(lm, options.tasks, limit=limit)["results"].items():
            for metric, value in values.items():
                if metric.endswith(",none") and "stderr" not in metric:
                    stderr = values[metric.replace(",", "_stderr,")]
                    spread = f" +- {stderr:.3f}" if isinstance(stderr, float) else ""
                    print(f"  {task:20} {metric.removesuffix(',none'):15} {value:.3f}{spread}")
    except MissingExtraError as error:
        print(f"  left out: {error}")

    print("\npass@k: does a text drawn after 'KING' go on with a line of its own?")
    prompt = prepared.tokenizer.encode("KING")
    mx.random.seed(options.seed)
    drawn = ["".join(stream_text(model, prepared.tokenizer, prompt, 30)) for _ in range(samples)]
    for name, rate in evaluate_pass_at_k([drawn], lambda text: ":\n" in text, [1, samples]).items():
        print(f"  {name:8} {rate:.2f}")
    print(f"  the first: {drawn[0]!r}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
