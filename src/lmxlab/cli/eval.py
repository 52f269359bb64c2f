"""`lmxlab eval`: score a trained model on its validation split, or on tasks of lm-eval."""

import time
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import RUNS, Json, Runs, option
from lmxlab.cli.render import MISSING, duration, note, number, out, out_json, table
from lmxlab.cli.runs import find_run
from lmxlab.data import check_vocabulary, eval_batches, prepare
from lmxlab.errors import UserError
from lmxlab.eval.score import Scorer
from lmxlab.experiments.loaded import Loaded, is_pretrained, pretrained, trained
from lmxlab.experiments.run import score_run
from lmxlab.experiments.stored import check_same_data, load_model, read_result, read_spec
from lmxlab.experiments.task import EVAL_ROWS
from lmxlab.files import atomic_write, to_json
from lmxlab.training.run_folder import RunFolder


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="eval")(evaluate)


def evaluate(
    run: Annotated[
        Positional[str],
        option(
            "A run's folder, or its name in `lmxlab log list`; with --tasks also glassllm or a model's folder.", "RUN"
        ),
    ],
    /,
    *,
    max_tokens: Annotated[int | None, option("About so many tokens, spread over the split.", "N", "all of it")] = None,
    tasks: Annotated[
        str | None,
        option("Tasks of lm-eval; `lmxlab` means those that need no network.", "A,B", "the validation split"),
    ] = None,
    limit: Annotated[int | None, option("Only the first questions of each task.", "N", "all")] = None,
    fewshot: Annotated[int | None, option("Solved examples before each question.", "N", "as the task says")] = None,
    include_path: Annotated[Path | None, option("A folder with tasks of your own (YAML).", "FOLDER", "none")] = None,
    max_new_tokens: Annotated[int | None, option("Length of generated answers.", "N", "as the task says")] = None,
    seed: Annotated[int, option("Of examples and of sampling.", "N")] = 0,
    runs: Runs = RUNS,
    json: Json = False,
) -> None:
    """Score a trained model on the whole validation split, or on tasks of lm-eval.

    On the split every token is scored once, with the context of the window it falls into. The figure of a training run
    is taken on a part of it, so it differs a little. The results of tasks are also written into the run's folder, as
    evals/DATE.json.

    Example: lmxlab eval runs/gpt/20260101-120000 --tasks lmxlab,hellaswag --limit 100
    """
    for name, value in (("max-tokens", max_tokens), ("limit", limit), ("max-new-tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    if fewshot is not None and fewshot < 0:
        raise UserError(f"--fewshot must be 0 or more, got {fewshot}.")
    if tasks is not None:
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        if not names:
            raise UserError("--tasks is empty: give names with commas between them, such as --tasks lmxlab,hellaswag.")
        options: dict[str, Any] = {"limit": limit, "num_fewshot": fewshot, "max_new_tokens": max_new_tokens}
        _tasks(run, runs, names, options | {"include_path": include_path, "seed": seed}, json)
        return
    if is_pretrained(run):
        raise UserError(f"{run!r} is no run, so it has no validation split: give --tasks, such as --tasks lmxlab.")
    _validation_split(run, runs, max_tokens, json)


def _validation_split(run: str, runs: Path, max_tokens: int | None, json: bool) -> None:
    folder = find_run(run, runs)
    if read_result(folder) is None:
        note(f"note: {folder.path} has not ended: this scores its last checkpoint.")
    if not read_spec(folder).method.of_text:
        _held_out_examples(folder, max_tokens, json)
        return
    spec, model = load_model(folder)
    prepared = prepare(spec.data)
    check_same_data(folder, prepared.hash)
    check_vocabulary(prepared.tokenizer, spec.model.vocab_size)
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


def _held_out_examples(folder: RunFolder, max_tokens: int | None, json: bool) -> None:
    """The scores that the run's method is judged by, on the examples that it held out."""
    if max_tokens is not None:
        raise UserError("--max-tokens is for runs on a text; this one is scored on all of its held-out examples.")
    scores = score_run(folder)
    if json:
        out_json({"run": str(folder.path), **scores})
        return
    for name, value in scores.items():
        out(f"{name:<12} {number(value)}")


def _tasks(run: str, runs: Path, names: list[str], options: dict[str, Any], json: bool) -> None:
    from lmxlab.eval.harness import harness_model, run_tasks

    loaded = pretrained(run) if is_pretrained(run) else trained(find_run(run, runs))
    lm = harness_model(loaded.model, loaded.tokenizer, max_length=loaded.context, stop_ids=loaded.stop_tokens)
    note(f"asking {loaded.description}: {', '.join(names)} ...")
    start = time.perf_counter()
    found = run_tasks(lm, names, **options)
    report = {
        "run": str(loaded.run.path) if loaded.run else run,
        "results": _metrics(found),
        "options": {"tasks": names, **options},
        "context": loaded.context,
        "versions": found["versions"],
        "seconds": time.perf_counter() - start,
    }
    place = _keep(loaded, report)
    if json:
        out_json(report)
        return
    rows = [
        (task, metric, number(entry["value"]), number(entry["stderr"]), str(values["questions"] or MISSING))
        for task, values in report["results"].items()
        for metric, entry in values["metrics"].items()
    ]
    table(["task", "metric", "value", "stderr", "questions"], rows)
    if place is not None:
        note(f"written to {place}")


def _metrics(found: dict[str, Any]) -> dict[str, Any]:
    """{task: {"questions": n, "metrics": {metric: {value, stderr, higher_is_better}}}}, groups among the tasks.

    lm-eval names a metric "acc,none": with the filter that answers went through, which is told where there is one.
    """
    report: dict[str, Any] = {}
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        metrics = {}
        for key, value in values.items():
            metric, _, answer_filter = key.partition(",")
            if not answer_filter or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{answer_filter}")
            metrics[metric if answer_filter == "none" else key] = {
                "value": value,
                "stderr": stderr if isinstance(stderr, int | float) else None,
                "higher_is_better": found["higher_is_better"].get(task, {}).get(metric),
            }
        asked = found["n-samples"].get(task, {}).get("effective")
        report[task] = {"questions": asked, "metrics": metrics}
    return report


def _keep(loaded: Loaded, report: dict[str, Any]) -> Path | None:
    """Writes the report into the run's folder, with the checkpoint that it is about."""
    if loaded.run is None:
        return None
    checkpoint = loaded.run.latest_checkpoint()
    report["checkpoint"] = checkpoint.name if checkpoint else None
    folder = loaded.run.path / "evals"
    stamp, n = time.strftime("%Y%m%d-%H%M%S"), 1
    while (place := folder / (f"{stamp}.json" if n == 1 else f"{stamp}-{n}.json")).exists():
        n += 1
    atomic_write(place, to_json(report) + "\n")
    return place
