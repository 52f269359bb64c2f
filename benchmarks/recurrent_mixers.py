"""Time and memory of a training step of recurrent mixers: in chunks, as they train, against step by step.

    python benchmarks/recurrent_mixers.py [--length 2048] [--rounds 3] [--width 256]

One layer, forward and backward, batch 1. Each contender is a process of its own, and they take turns; a ratio is the
median over rounds. The step-by-step loop is given its best: its slices are taken apart with a gradient that is linear
in their number (`core/unstack.py`). Memory is MLX's own peak, in chunks at three lengths: linear means that it doubles.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

CHUNKS, STEPS = "chunks", "steps"


def delta_by_steps() -> None:
    from lmxlab.core import delta_rule, deltanet

    def steps(q: Any, k: Any, v: Any, log_decay: Any, beta: Any, state: Any = None) -> Any:
        import mlx.core as mx

        state = mx.zeros((*v.shape[:2], k.shape[-1], v.shape[-1])) if state is None else state
        return delta_rule.delta_rule_steps(q, k, v, log_decay, beta, state)

    deltanet.delta_rule = steps


def mamba2_by_steps() -> None:
    import mlx.core as mx
    from lmxlab.core import mamba2
    from lmxlab.core.ssd import ssd_step
    from lmxlab.core.unstack import unstack

    def steps(u: Any, log_decay: Any, b: Any, c: Any, state: Any, chunk: int) -> Any:
        out = []
        tokens = zip(*(unstack(mx.moveaxis(a, 1, 0)[:, :, None]) for a in (u, log_decay, b, c)), strict=True)
        for u_t, decay_t, b_t, c_t in tokens:
            y, state = ssd_step(u_t, decay_t, b_t, c_t, state)
            out.append(y)
        return mx.concatenate(out, axis=1), state

    mamba2.ssd = steps


# Name -> fields of BlockConfig for a width, and what makes its layers run step by step.
MIXERS: dict[str, tuple[Callable[[int], dict[str, Any]], Callable[[], None]]] = {
    "gated_deltanet": (
        lambda width: {"n_heads": width // 64, "head_dim": 64, "use_short_conv": True},
        delta_by_steps,
    ),
    "mamba2": (
        lambda width: {
            "n_heads": width // 64,
            "mamba_n_heads": width // 32,
            "mamba_head_dim": 64,
            "ssm_state_size": 64,
        },
        mamba2_by_steps,
    ),
}


def worker(mixer: str, form: str, length: int, width: int) -> None:
    """Prints the median time of a step and its peak memory."""
    import time

    import lmxlab  # noqa: F401  # before mlx, for its BLAS
    import mlx.core as mx
    import mlx.nn as nn
    from lmxlab.core import BlockConfig
    from lmxlab.core.components import attention_registry

    fields, by_steps = MIXERS[mixer]
    if form == STEPS:
        by_steps()
    config = BlockConfig(attention=mixer, position="none", norm="rms_norm", bias=False, d_model=width, **fields(width))
    mx.random.seed(0)
    layer = attention_registry.get(mixer)(config)
    x = mx.random.normal((1, length, width))
    mx.eval(layer.parameters(), x)
    gradients = nn.value_and_grad(layer, lambda x: (layer(x, mask="causal")[0] ** 2).mean())
    mx.eval(gradients(x))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    times = []
    while len(times) < 3 or sum(times) < 2 and len(times) < 50:
        start = time.perf_counter()
        mx.eval(gradients(x))
        times.append(time.perf_counter() - start)
    print(json.dumps({"ms": 1e3 * statistics.median(times), "mb": (mx.get_peak_memory() - before) / 1e6}))


def run(mixer: str, form: str, length: int, width: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--worker", mixer, form, str(length), str(width)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        mixer, form, length, width = options.worker
        worker(mixer, form, int(length), int(width))
        return
    print("| mixer | in chunks | step by step | times faster | MB at a quarter, half, whole length | MB of steps |")
    print("|---|---|---|---|---|---|")
    for mixer in options.mixers:
        chunks, steps = [], []
        for _ in range(options.rounds):
            chunks.append(run(mixer, CHUNKS, options.length, options.width))
            steps.append(run(mixer, STEPS, options.length, options.width))
        ratio = statistics.median(s["ms"] / c["ms"] for s, c in zip(steps, chunks, strict=True))
        shorter = [run(mixer, CHUNKS, options.length // part, options.width)["mb"] for part in (4, 2)]
        memory = ", ".join(f"{mb:.0f}" for mb in (*shorter, chunks[0]["mb"]))
        fast, slow = (statistics.median(r["ms"] for r in rows) for rows in (chunks, steps))
        print(
            f"| {mixer} | {fast:.0f} ms | {slow:.0f} ms | {ratio:.1f}x | {memory} | {steps[0]['mb']:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
