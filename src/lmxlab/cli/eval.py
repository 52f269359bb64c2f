"""`lmxlab eval`: score a trained model on the whole validation split."""

import time
from typing import Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, Runs, option
from lmxlab.cli.render import duration, note, out, out_json
from lmxlab.cli.runs import find_run
from lmxlab.data import eval_batches, prepare
from lmxlab.errors import UserError
from lmxlab.eval.score import Scorer
from lmxlab.experiments.run import EVAL_ROWS
from lmxlab.experiments.stored import check_same_data, load_model, read_result


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="eval")(evaluate)


def evaluate(
    run: Annotated[Positional[str], option("A run's folder, or its name in `lmxlab log list`.", "RUN")],
    /,
    *,
    max_tokens: Annotated[int | None, option("About so many tokens, spread over the split.", "N", "all of it")] = None,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Score a trained model on the whole validation split.

    Every token is scored once, with the context of the window it falls into. The figure of a training run is taken on a
    part of the split, so it differs a little.

    Example: lmxlab eval runs/gpt/20260101-120000
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens must be at least 1, got {max_tokens}.")
    folder = find_run(run, runs)
    spec, model = load_model(folder)
    if read_result(folder) is None:
        note(f"note: {folder.path} has not ended: this scores its last checkpoint.")
    prepared = prepare(spec.data)
    check_same_data(folder, prepared)
    note(f"scoring {spec.name} on {max_tokens or len(prepared.val):,} tokens of {spec.data.dataset} ...")
    start = time.perf_counter()
    result = Scorer(model, prepared.token_bytes)(eval_batches(prepared.val, EVAL_ROWS, spec.seq_len, max_tokens))
    seconds = time.perf_counter() - start
    if json:
        out_json(
            {
                "run": str(folder.path),
                "val_loss": result.val_loss,
                "perplexity": result.perplexity,
                "val_bpb": result.val_bpb,
                "tokens": result.tokens,
                "bytes": result.bytes,
                "seconds": seconds,
            }
        )
        return
    out(f"val_loss    {result.val_loss:.4f} nats per token")
    out(f"perplexity  {result.perplexity:.3f} per token")
    out(f"val_bpb     {result.val_bpb:.4f} bits per byte")
    out(f"scored      {result.tokens:,} tokens, {result.bytes:,} bytes, in {duration(seconds)}")
