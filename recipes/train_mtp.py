"""Train a model that also says the tokens after the next one, and let its heads draft while it writes.

python recipes/train_mtp.py --heads 3 --weight 0.1 --tokenizer bpe:512 --steps 1000

A model without heads gets as many FLOPs, so more steps, and is scored on the same text: at this size the heads are
worth it for the speed of decoding, not for the loss.
"""

import dataclasses
from dataclasses import dataclass

import lmxlab  # before mlx, for its BLAS
import mlx.core as mx
import tyro
from lmxlab.data import DataConfig, PreparedData, TokenBatches, eval_batches, prepare
from lmxlab.experiments.flops import estimate_flops_per_step
from lmxlab.inference import MTPDrafter, speculative_decode
from lmxlab.models.llama import llama_config


@dataclass
class Options:
    dataset: str = "shakespeare"
    """A dataset of `lmxlab data info`, or a text file."""
    tokenizer: str = "char"
    """char, bpe:SIZE, or a tokenizer's JSON file."""
    heads: int = 2
    """How many tokens beyond the next one are predicted."""
    weight: float = 0.3
    """Of the heads' loss (lambda): DeepSeek-V3 took 0.3, and 0.1 towards the end."""
    layers: int = 2
    d_model: int = 64
    steps: int = 300
    """Of the model with heads."""
    batch_size: int = 16
    seq_len: int = 64
    learning_rate: float = 3e-3
    tokens: int = 200
    """How much to write."""
    temperature: float = 0.8
    """Of the writing; 0 takes the likeliest token, and the text is then that of plain decoding."""
    prompt: str = "KING"
    seed: int = 0
    quick: bool = False
    """A few seconds, to see that it works."""


def train(options: Options, prepared: PreparedData, heads: int, flops: float) -> lmxlab.LanguageModel:
    width, shape = options.d_model, (options.batch_size, options.seq_len)
    config = llama_config(prepared.vocab_size, width, 4, 2, options.layers, 3 * width, 512, tie_embeddings=True)
    config = dataclasses.replace(config, mtp_n_predict=heads, mtp_lambda=options.weight)
    cost = estimate_flops_per_step(config, *shape, attention_len=options.seq_len)
    steps = max(1, int(flops // cost))
    mx.random.seed(options.seed)
    model = lmxlab.LanguageModel(config)
    settings = lmxlab.TrainConfig(
        learning_rate=options.learning_rate, max_steps=steps, warmup_steps=steps // 10, seed=options.seed
    )
    trainer = lmxlab.Trainer(model, settings)  # it trains the heads, since the model has them
    history = trainer.train(TokenBatches(prepared.train, *shape, seed=options.seed))
    scores = trainer.evaluate(eval_batches(prepared.val, *shape, 2000 if options.quick else 20000))
    ahead = f", of the heads {history[-1]['mtp_loss']:.3f} in training" if heads else ""
    print(
        f"{heads} heads: {model.count_parameters():,} parameters, {steps} steps of {cost:.2e} FLOPs, "
        f"loss on unseen text {scores['eval_loss']:.3f}{ahead}"
    )
    return model


def main(options: Options) -> None:
    steps, tokens = (3, 20) if options.quick else (options.steps, options.tokens)
    prepared = prepare(DataConfig(dataset=options.dataset, tokenizer=options.tokenizer))
    size = prepared.vocab_size, options.d_model, 4, 2, options.layers, 3 * options.d_model, 512
    shape = llama_config(*size, tie_embeddings=True)
    with_heads = dataclasses.replace(shape, mtp_n_predict=options.heads)
    budget = steps * estimate_flops_per_step(
        with_heads, options.batch_size, options.seq_len, attention_len=options.seq_len
    )
    train(options, prepared, 0, budget)
    model = train(options, prepared, options.heads, budget)
    prompt = mx.array([prepared.tokenizer.encode(options.prompt)])
    settings = {"temperature": options.temperature, "seed": options.seed}
    for n in range(1, options.heads + 1):
        drafter = MTPDrafter(model, model.mtp_heads[:n])
        text, rates = speculative_decode(model, drafter, prompt, tokens, n, **settings)
        print(
            f"{n} drafted at a time: {rates['acceptance_rate']:.0%} accepted, about "
            f"{tokens - rates['total_accepted']:.0f} passes of the model for {tokens} tokens"
        )
        if options.temperature == 0:
            plain = lmxlab.generate(model, prompt, tokens, temperature=0.0)
            print(f"  {int((text == plain).sum())} of {text.size} tokens are those of plain decoding")
    print(f"\n{prepared.tokenizer.decode(text[0].tolist())}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
