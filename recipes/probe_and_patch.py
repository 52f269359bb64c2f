"""A look inside a pretrained model: attention maps, the logit lens, probes with a control task, activation patching.

python recipes/probe_and_patch.py --clean "It was late. She said to" --corrupted "It was late. He said to" \
    --answer " herself" --other " himself"

Writes pictures into a folder and the numbers to the screen.
"""

from dataclasses import dataclass
from pathlib import Path

import lmxlab  # noqa: F401  # before mlx, for its BLAS
import mlx.core as mx
import numpy as np
import tyro
from lmxlab.analysis import (
    extract_attention_maps,
    logit_difference,
    logit_lens,
    patch_heads,
    patch_positions,
    probe_layers,
)
from lmxlab.analysis.plotting import plot_attention_heatmap, plot_heatmap
from lmxlab.data import DataConfig, load_glassllm, prepare


@dataclass
class Options:
    clean: str = "It was late. She said to"
    """A prompt after which the model prefers the answer."""
    corrupted: str = "It was late. He said to"
    """The prompt with as little as possible changed, of as many tokens."""
    answer: str = " herself"
    """A next token of one piece."""
    other: str = " himself"
    """The one that it competes with."""
    dataset: str = "shakespeare"
    """The text that probes are trained on."""
    rows: int = 192
    """Rows of 64 tokens for the probes, of which a quarter is held out."""
    probe_steps: int = 150
    output: Path = Path("inside")
    """Folder for the pictures."""
    quick: bool = False
    """A few seconds, to see that it works."""


def main(options: Options) -> None:
    rows, steps = (16, 5) if options.quick else (options.rows, options.probe_steps)
    options.output.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_glassllm()

    clean, corrupted = (mx.array([tokenizer.encode(text)]) for text in (options.clean, options.corrupted))
    pieces = [tokenizer.decode([i]) for i in clean[0].tolist()]
    print(f"{pieces}, then {options.answer!r} rather than {options.other!r}?")
    (answer,), (other,) = tokenizer.encode(options.answer), tokenizer.encode(options.other)
    metric = logit_difference(answer, other)
    for name, prompt in (("clean", clean), ("corrupted", corrupted)):
        print(f"  {name:<10} logit difference {metric(model(prompt)[0]).item():+.2f}")

    print(
        "\nLogit lens: the likeliest next token after each layer, and how far that is from the model's own prediction"
    )
    lens = logit_lens(model, clean)
    for layer in range(len(lens.top)):
        piece, far = tokenizer.decode([lens.top[layer, 0, -1].item()]), lens.divergence[layer, 0, -1].item()
        print(f"  after {layer} layers {piece!r:<12} {far:.2f} nats")

    print("\nActivation patching: how much of the difference one clean activation brings back")
    labels = [f"layer {i}" for i in range(len(model.blocks))]
    for place in ("output", "attention", "ffn"):
        found = patch_positions(model, clean, corrupted, metric, place=place)
        layer, position = np.unravel_index(np.abs(found).argmax(), found.shape)
        print(f"  {place:<10} most in layer {layer} at {pieces[position]!r}: {found[layer, position]:+.0%}")
        _save(options, f"patch_{place}", found, f"Recovered by {place}", ("token", ""), pieces, labels)
    heads = patch_heads(model, clean, corrupted, metric)
    layer, head = np.unravel_index(np.abs(heads).argmax(), heads.shape)
    print(f"  heads      most by head {head} of layer {layer}: {heads[layer, head]:+.0%}")
    _save(options, "patch_heads", heads, "Recovered by one head", ("head", ""), None, labels)
    maps = extract_attention_maps(model, clean)
    picture = plot_attention_heatmap(maps[f"layer_{layer}"], pieces, head=int(head), layer=int(layer))
    picture.savefig(options.output / "attention.png")

    print("\nProbes: what one matrix reads off each layer, on rows that it was not trained on")
    prepared = prepare(DataConfig(options.dataset, "glassllm", max_documents=4))
    tokens = mx.array(prepared.train[: rows * 64].astype(np.int32)).reshape(-1, 64)
    for name, values in {
        "the token before it began a word": word_before(tokenizer, tokens),
        "words since the line began": words_in_line(tokenizer, tokens),
    }.items():
        print(f"  {name}")
        for result in probe_layers(model, tokens, values, steps=steps):
            print(
                f"    layer {result.layer}: accuracy {result.accuracy:.2f} (the commonest: {result.majority:.2f}), "
                f"control {result.control_accuracy:.2f}, selectivity {result.selectivity:+.2f}"
            )
    print(f"\npictures: {', '.join(sorted(path.name for path in options.output.glob('*.png')))} in {options.output}")


def word_before(tokenizer, tokens: mx.array) -> mx.array:
    """1 where the token before began a word (after a space), else 0; the first of a row is not scored."""
    began = np.array([tokenizer.decode([i]).startswith(" ") for i in range(tokenizer.vocab_size)])[np.array(tokens)]
    return mx.array(np.concatenate([np.full((len(began), 1), -1), began[:, :-1]], axis=1))


def words_in_line(tokenizer, tokens: mx.array) -> mx.array:
    """0 for the first two words of a line, 1 for the next two, 2 for all others; the row's first line is not scored."""
    labels = np.full(tokens.shape, -1)
    for i, row in enumerate(tokens.tolist()):
        words = -1
        for j, piece in enumerate(tokenizer.decode([token]) for token in row):
            words = 0 if "\n" in piece else words + (words >= 0 and piece.startswith(" "))
            labels[i, j] = min(words // 2, 2) if words >= 0 else -1
    return mx.array(labels)


def _save(options: Options, name: str, values: np.ndarray, title: str, axes, columns, rows) -> None:
    figure = plot_heatmap(values, title, axes, columns, rows, limits=(-1, 1), colours="RdBu_r")
    figure.savefig(options.output / f"{name}.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
