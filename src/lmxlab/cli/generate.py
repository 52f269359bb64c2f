"""`lmxlab generate`: continue a text with a trained model."""

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, Runs, option
from lmxlab.cli.render import note, out_json
from lmxlab.cli.runs import find_run
from lmxlab.errors import UserError
from lmxlab.experiments.loaded import pretrained, trained
from lmxlab.experiments.spec import check_seed
from lmxlab.models.sampling import Sampler
from lmxlab.models.text import stream_text


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="generate")(generate)


def generate(
    run: Annotated[
        Positional[str | None],
        option("A run's folder, or its name in `lmxlab log list`; with --model, the text to continue.", "RUN | TEXT"),
    ] = None,
    /,
    *,
    model: Annotated[
        str | None,
        option("A pretrained model instead of a run: glassllm (no network), a folder, a repo.", "NAME", "none"),
    ] = None,
    prompt: Annotated[tuple[str, ...], option("The text to continue, or several.", "TEXT", "a line break")] = (),
    max_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Annotated[tuple[str, ...], option("End before any of these texts.", "TEXT", "none")] = (),
    seed: Annotated[int | None, option("Makes the text the same every time.", "N", "a new one")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Continue a text with a trained model, or with a pretrained one.

    Example calls:
      lmxlab generate runs/gpt/20260101-120000 --prompt "To be, or not" "My lord," --stop "."
      lmxlab generate --model glassllm "Once upon"

    Args:
        max_tokens: How many tokens to write.
        temperature: 0 always takes the likeliest token; 1 samples as the model learned it.
        top_k: Sample among the k likeliest tokens; 0 among all.
        top_p: Sample among the likeliest tokens that together have this probability.
        min_p: Sample among the tokens at least this many times as likely as the likeliest.
        repetition_penalty: Above 1 makes tokens less likely that the text already has.
    """
    if max_tokens < 0:
        raise UserError(f"--max-tokens must be 0 or more, got {max_tokens}.")
    if temperature < 0:
        raise UserError(f"--temperature must be 0 or more, got {temperature}.")
    if seed is not None:
        check_seed(seed)
    if model is not None and run is not None:
        prompt = (run, *prompt)
    if model is None and run is None:
        raise UserError("Which model? Give a RUN (`lmxlab log list` shows them), or --model glassllm.")
    source = pretrained(model) if model is not None else trained(find_run(str(run), runs))
    prompt = prompt or ("\n",)
    tokenizer = source.tokenizer
    starts = [tokenizer.encode(text) for text in prompt]
    if not all(starts) or not starts:
        raise UserError("The prompt is empty: give at least one character with --prompt.")
    sampler = Sampler(temperature, top_k, top_p, repetition_penalty, min_p)
    texts: list[Iterator[str]] = [
        stream_text(
            source.model,
            tokenizer,
            start,
            max_tokens,
            sampler,
            stop_tokens=source.stop_tokens,
            stop_strings=stop,
            seed=seed,
            context=source.context,
        )
        for start in starts
    ]
    if json:
        written = [{"prompt": before, "text": "".join(text)} for before, text in zip(prompt, texts, strict=True)]
        out_json({"run": run if model is None else model} | (written[0] if len(written) == 1 else {"texts": written}))
        return
    first = next(texts[0], "")  # what cannot be is refused here, before anything is written
    note(source.description)
    texts[0] = itertools.chain([first], texts[0])
    for before, text in zip(prompt, texts, strict=True):
        sys.stdout.write(before)
        for piece in text:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
