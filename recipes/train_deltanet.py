"""Train a Gated DeltaNet on Shakespeare, then decode from it: what it remembers never grows, a KV cache does.

python recipes/train_deltanet.py --layers 4 --width 128 --global-every 4 --steps 500
"""

import dataclasses
import time
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.core import BlockConfig, ModelConfig
from lmxlab.data import DataConfig, TokenBatches, eval_batches, prepare
from lmxlab.eval import bits_per_byte
from lmxlab.models.text import stream_text
from mlx.utils import tree_flatten


@dataclass
class Options:
    layers: int = 2
    width: int = 64
    heads: int = 2
    global_every: int = 0
    """Every so many layers one of attention, as Qwen3.5 has with 4; 0: none."""
    conv: int = 4
    """Tokens that the short convolution sees."""
    steps: int = 150
    """Training steps of 16 x 64 tokens."""
    learning_rate: float = 3e-3
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    context: int = 1024
    """How far decoding is followed."""
    prompt: str = "KING"
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    steps, context = (3, 512) if options.quick else (options.steps, options.context)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    attention = BlockConfig(
        attention="gqa",
        ffn="gated",
        norm="rms_norm",
        position="rope",
        d_model=options.width,
        n_heads=options.heads,
        d_ff=8 * round(options.width / 3),
        bias=False,
        max_seq_len=context,
    )
    delta = dataclasses.replace(
        attention, attention="gated_deltanet", position="none", use_short_conv=True, conv_kernel_size=options.conv
    )
    every = options.global_every or options.layers + 1
    layers = tuple(attention if (i + 1) % every == 0 else delta for i in range(options.layers))
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(ModelConfig(delta, prepared.vocab_size, options.layers, block_configs=layers))
    rival = lmxlab.LanguageModel(ModelConfig(attention, prepared.vocab_size, options.layers))

    print(f"{model.count_parameters():,} parameters, {steps} steps on {prepared.info['source']}")
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    losses = lmxlab.Trainer(model, settings).train(TokenBatches(prepared.train, 16, 64, seed=options.seed))
    for i in sorted({round(share * (len(losses) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)}):
        print(f"  step {i + 1:>5}: loss {losses[i]['loss']:.3f}")
    windows = [mx.concatenate([x, y[:, -1:]], axis=1) for x, y in eval_batches(prepared.val, 16, 64, 10_000)]
    print(f"  unseen text: {bits_per_byte(model, windows, token_bytes=prepared.token_bytes):.3f} bits per byte\n")

    prompt = prepared.tokenizer.encode(options.prompt)
    text = "".join(stream_text(model, prepared.tokenizer, prompt, 20 if options.quick else 120, seed=options.seed))
    print(options.prompt + text + "\n")

    print("After   DeltaNet  attention   ms per token of each")
    caches = {"delta": model.make_cache(), "attention": rival.make_cache()}
    seen = 0
    for depth in (context // 8, context // 4, context // 2, context):
        times = []
        for net, cache in zip((model, rival), caches.values(), strict=True):
            mx.eval(net(mx.zeros((1, depth - seen), mx.int32), cache=cache)[0], held(cache))
            times.append(ms_per_token(net, cache))
        delta_kb, attention_kb = (sum(array.nbytes for array in held(cache)) / 1024 for cache in caches.values())
        print(f"{depth:5}  {delta_kb:6.1f} KB  {attention_kb:6.1f} KB   {times[0]:.2f}  {times[1]:.2f}")
        seen = depth


def held(cache: list) -> list[mx.array]:
    """The arrays of a cache."""
    return [array for entry in cache for _, array in tree_flatten(entry.snapshot()) if isinstance(array, mx.array)]


def ms_per_token(model: lmxlab.LanguageModel, cache: list, tokens: int = 16) -> float:
    """Of some further tokens, which the cache then forgets again."""
    states = [entry.snapshot() for entry in cache]
    start = time.perf_counter()
    for _ in range(tokens):
        mx.eval(model(mx.zeros((1, 1), mx.int32), cache=cache)[0], held(cache))
    elapsed = time.perf_counter() - start
    for entry, state in zip(cache, states, strict=True):
        entry.restore(state)
    return 1e3 * elapsed / tokens


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
