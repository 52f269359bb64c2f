"""Generation in a GRPO step: batched decoding with a cache against running the whole prefix for each token, in one run.

    python benchmarks/grpo_generation.py [--rounds 3] [--tiny]

Both draw the same tokens, which is checked: one seed, one sampler, one model. The plain version is batched, too, and
runs `model(prefix)` for each new token. Turns alternate; a ratio is the median over rounds. The training step on what
was written (forward, backward, update, reference) is timed beside it, so that one sees what a whole GRPO step takes
either way. The bar: generation at least 5 times faster.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
from lmxlab.models.base import LanguageModel, evaluating
from lmxlab.models.llama import llama_config
from lmxlab.models.sampling import Keys, Sampler
from lmxlab.training.grpo import GRPO
from lmxlab.training.rollouts import Rollouts
from lmxlab.training.sampling import Prompt, sample, token_reward

SIZES = {
    "1.7 M": {"d_model": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 4096},
    "10 M": {"d_model": 320, "n_layers": 6, "n_heads": 5, "vocab_size": 8192},
}
TINY = {"tiny": {"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 256}}


def plain(model: LanguageModel, prompts: mx.array, max_tokens: int, temperature: float, seed: int) -> mx.array:
    """(B, L) -> (B, L + max_tokens), each token from a pass over all that came before it."""
    keys, sampler = Keys(seed), Sampler(temperature)
    with evaluating(model):
        for _ in range(max_tokens):
            hidden, _ = model.hidden_states(prompts)
            drawn = sampler(model.logits(hidden[:, -1]), None, keys())
            prompts = mx.concatenate([prompts, drawn[:, None].astype(prompts.dtype)], axis=1)
            mx.eval(prompts)
    return prompts


def compare(name: str, sizes: dict[str, int], rounds: int, rows: int, prompt: int, new: int) -> None:
    mx.random.seed(0)
    config = llama_config(**sizes, n_kv_heads=sizes["n_heads"], d_ff=sizes["d_model"] * 8 // 3, max_seq_len=1024)
    model = LanguageModel(config)
    mx.eval(model.parameters())
    tokens = mx.random.randint(0, sizes["vocab_size"], (rows, prompt))
    prompts = [Prompt(row) for row in tokens]
    contenders: dict[str, Callable[[int], mx.array]] = {
        "cached": lambda n: mx.stack([c.whole for c in sample(model, prompts, n, 0.8, keys=Keys(1))]),
        "plain": lambda n: plain(model, tokens, n, 0.8, 1),
    }
    for function in contenders.values():
        mx.eval(function(4))  # compiles kernels
    written: dict[str, mx.array] = {}
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, function in contenders.items():
            start = time.perf_counter()
            written[contender] = function(new)
            mx.eval(written[contender])
            times[contender].append(time.perf_counter() - start)
    equal = float((written["cached"] == written["plain"]).mean())
    step_s = train_step(model, tokens, new, rounds)
    cached, slow = (min(times[contender]) for contender in ("cached", "plain"))
    ratio = statistics.median(b / a for a, b in zip(times["cached"], times["plain"], strict=True))
    print(f"{name} parameters, {rows} completions of {new} tokens after {prompt}; {equal:.1%} of tokens equal")
    print(f"  generation  cached {cached:7.2f} s ({rows * new / cached:6.0f} tok/s)   plain {slow:7.2f} s", end="")
    print(f"   plain / cached {ratio:.1f}x")
    print(f"  whole step  cached {cached + step_s:7.2f} s   plain {slow + step_s:7.2f} s", end="")
    print(f"   of which training {step_s:.2f} s", flush=True)


def train_step(model: LanguageModel, tokens: mx.array, new: int, rounds: int) -> float:
    """Seconds of one update on what was written, the reference's pass not counted."""
    rollouts = Rollouts(
        model, [tokens[0]], token_reward(lambda _, whole: float(whole[-1].item())), prompts_per_round=1,
        group_size=len(tokens), max_tokens=new, ref_model=model,
    )  # fmt: skip
    batch = next(rollouts)
    trainer = lmxlab.Trainer(model, lmxlab.TrainConfig(learning_rate=1e-6, warmup_steps=0), objective=GRPO())
    trainer.train_step(batch)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        trainer.train_step(batch)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="completions at once")
    parser.add_argument("--prompt", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--new", type=int, default=96, metavar="TOKENS")
    parser.add_argument("--tiny", action="store_true", help="to try the script")
    args = parser.parse_args()
    for name, sizes in (TINY if args.tiny else SIZES).items():
        compare(name, sizes, args.rounds, args.rows, args.prompt, args.new)


if __name__ == "__main__":
    main()
