"""`lmxlab generate`: continue a text with a trained model."""

import itertools
import sys
from typing import Annotated

import mlx.core as mx
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, Runs, option
from lmxlab.cli.render import note, out_json
from lmxlab.cli.runs import find_run
from lmxlab.data import prepare
from lmxlab.errors import UserError
from lmxlab.experiments.sample import stream_text
from lmxlab.experiments.spec import check_seed
from lmxlab.experiments.stored import check_same_data, load_model


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="generate")(generate)


def generate(
    run: Annotated[Positional[str], option("A run's folder, or its name in `lmxlab log list`.", "RUN")],
    /,
    *,
    prompt: Annotated[str, option("The text to continue.", "TEXT", "a line break")] = "\n",
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: Annotated[int | None, option("Makes the text the same every time.", "N", "a new one")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Continue a text with a trained model.

    Example: lmxlab generate runs/gpt/20260101-120000 --prompt "To be, or not" --max-tokens 300

    Args:
        max_tokens: How many tokens to write.
        temperature: 0 always takes the likeliest token; 1 samples as the model learned it.
        top_k: Sample among the k likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together have this probability.
    """
    if max_tokens < 0:
        raise UserError(f"--max-tokens must be 0 or more, got {max_tokens}.")
    if temperature < 0:
        raise UserError(f"--temperature must be 0 or more, got {temperature}.")
    if seed is not None:
        check_seed(seed)
    folder = find_run(run, runs)
    spec, model = load_model(folder)
    prepared = prepare(spec.data)
    check_same_data(folder, prepared)
    tokenizer = prepared.tokenizer
    model.eval()
    tokens = tokenizer.encode(prompt)
    if not tokens:
        raise UserError("The prompt is empty: give at least one character with --prompt.")
    if seed is not None:
        mx.random.seed(seed)
    pieces = stream_text(model, tokenizer, tokens, max_tokens, spec.seq_len, temperature, top_k, top_p)
    if json:
        out_json({"run": run, "prompt": prompt, "text": "".join(pieces)})
        return
    first = next(pieces, "")  # bad sampling options are refused here, before anything is written
    note(f"{spec.name}, seed {spec.seed}, trained on {spec.data.dataset}")
    sys.stdout.write(prompt)
    for piece in itertools.chain([first], pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
