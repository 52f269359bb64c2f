"""Forward and backward pass of a mixture of experts against computing every expert for every token.

    python benchmarks/moe.py [--rounds 5] [--tokens 2048] [--width 256] [--hidden 512] [--experts 8] [--top-k 2]

Both have the same weights and give the same gradients. They take turns, so that a busy machine is busy for both; the
ratio is the median over rounds. With `top_k` of `experts` at most experts / top_k could be gained.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import lmxlab  # noqa: F401  # before mlx, for its BLAS
import mlx.core as mx
import mlx.nn as nn
from lmxlab.core import kernels
from lmxlab.core.config import BlockConfig
from lmxlab.core.moe import MoEFFN
from mlx.utils import tree_flatten


def densely(moe: MoEFFN, x: mx.array) -> mx.array:
    """Every expert on every token, at weight 0 where it was not chosen: one batched product per matrix."""
    indices, weights = moe.router(x)
    experts = moe.experts
    shares = mx.put_along_axis(mx.zeros((len(x), experts.n_experts)), indices, weights, axis=1)
    gate, up = x @ experts.gate.weight.swapaxes(1, 2), x @ experts.up.weight.swapaxes(1, 2)
    out = kernels.swiglu(gate, up) @ experts.down.weight.swapaxes(1, 2)
    return (out * shares.T[..., None]).sum(axis=0)


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    mx.eval(step())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"rounds": 5, "tokens": 2048, "width": 256, "hidden": 512, "experts": 8, "top-k": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    mx.random.seed(0)
    config = BlockConfig(ffn="moe", d_model=args.width, n_heads=1, d_ff=args.hidden, n_experts=args.experts)
    moe = MoEFFN(config, top_k=args.top_k)
    x = mx.random.normal((args.tokens, args.width))

    def pass_of(forward: Callable[[MoEFFN, mx.array], mx.array]) -> Callable[[], object]:
        run = nn.value_and_grad(moe, lambda model, x: mx.square(forward(model, x)).sum())
        return lambda: run(moe, x)

    passes = {"gathered": pass_of(lambda model, x: model(x)), "dense": pass_of(densely)}
    gradients = [dict(tree_flatten(step()[1])) for step in passes.values()]  # type: ignore[index]
    for name, array in gradients[0].items():
        assert mx.allclose(array, gradients[1][name], rtol=1e-3, atol=1e-2), name
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(args.rounds):
        for name, step in passes.items():
            times[name].append(seconds(step))
    ratio = statistics.median(d / g for d, g in zip(times["dense"], times["gathered"], strict=True))
    print(f"{args.tokens} tokens, {args.experts} experts of {args.width} x {args.hidden}, top {args.top_k}")
    for name, values in times.items():
        print(f"  {name:<9} {1e3 * statistics.median(values):8.1f} ms")
    print(f"  {ratio:.2f} times as fast (bar: 2)")


if __name__ == "__main__":
    main()
