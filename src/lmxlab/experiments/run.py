"""One training run, from data to ledger line: the only way in which lmxlab trains a model that it keeps.

The clock tells apart what the seconds went to: `train_s` are the steps alone. The first step of a process, which also
compiles, counts as `compile_s`; evaluations, checkpoints and the sample have entries of their own.
"""

import gc
import logging
import math
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from lmxlab.core.lora import save_lora_adapters
from lmxlab.data import PreparedData
from lmxlab.errors import UserError
from lmxlab.experiments.budget import flops_per_step, steps_within, tokens_per_step, with_steps
from lmxlab.experiments.interrupt import Interrupted, Stop
from lmxlab.experiments.loaded import build_model
from lmxlab.experiments.make_task import make_task
from lmxlab.experiments.provenance import environment, git_commit
from lmxlab.experiments.recorder import Clock, Observer, Recorder
from lmxlab.experiments.spec import RunSpec
from lmxlab.experiments.stored import check_same_data, check_same_run, read_result, read_spec
from lmxlab.experiments.task import Task
from lmxlab.experiments.tracking import MEASUREMENTS, ExperimentLog, LogEntry
from lmxlab.files import atomic_write, to_json
from lmxlab.models.base import LanguageModel
from lmxlab.training.checkpoints import load_checkpoint
from lmxlab.training.expert_load import ExpertLoadMonitor
from lmxlab.training.run_folder import RunFolder
from lmxlab.training.trainer import NonFiniteLoss, Trainer

logger = logging.getLogger(__name__)

MEASURED_STEPS = 8


class Diverged(UserError):
    """The loss became NaN or infinite; says at which step and where the last good checkpoint is."""


def execute(
    spec: RunSpec,
    folder: RunFolder,
    prepared: PreparedData | None = None,
    ledger: ExperimentLog | None = None,
    observer: Observer | None = None,
    stop: Stop | None = None,
    resume: bool = False,
) -> LogEntry:
    """Trains the run that `spec` describes and writes everything about it into `folder`.

    Args:
        prepared: the data of `spec.data`, when the caller has it already.
        ledger: gets one line when the run ends, also when it crashes.
        observer: is told what happens.
        stop: ends the run after the step in progress, once requested.
        resume: go on from the folder's last good checkpoint, bit for bit as if the run had never stopped; without a
            checkpoint the run starts again. A run that has ended returns its result.

    Raises:
        UserError: data too short, budget too small, a spec that differs from the folder's, a loss that is not finite,
            another process that is training in the folder.
        Interrupted: `stop` was requested; a checkpoint is saved.
    """
    observer, stop, clock = observer or Observer(), stop or Stop(), Clock()
    if resume and (entry := read_result(folder)) is not None:
        _log_once(ledger, entry)
        return entry
    observer.phase(spec, "data")
    # A text shorter than one window, or a budget below one step, is a mistake, not a run that crashed.
    with clock("data"):
        task = make_task(spec, prepared)
    goes_on = resume and folder.config.exists()
    spec = check_same_run(spec, folder, task.info["hash"]) if goes_on else _settle(spec, task)
    with folder.make().in_use(), _run_log(folder):
        if resume and (entry := read_result(folder)) is not None:
            return entry  # another process has ended the run since we looked
        if not goes_on:
            settings = {"spec": spec.to_dict(), "data": task.info, **environment()}
            task.tokenizer.save(folder.tokenizer)
            atomic_write(folder.config, to_json(settings))
        try:
            return _train(spec, folder, task, ledger, observer, stop, clock)
        except Interrupted:
            logger.info("interrupted; the state is saved")
            raise
        except KeyboardInterrupt:
            logger.info("stopped at once; the last checkpoint stands")
            raise
        except Exception as error:
            # For run.log alone: the caller shows the error.
            logger.info("crashed: %s", error, exc_info=not isinstance(error, UserError))
            observer.done(spec, None)
            entry = _entry(spec, folder, ledger, status="crash", description=f"{type(error).__name__}: {error}")
            try:
                _log_once(ledger, entry)
            except UserError as second:  # on a full disk this one fails too; the first error tells more
                logger.warning("%s", second)
            raise


def _train(
    spec: RunSpec,
    folder: RunFolder,
    task: Task,
    ledger: ExperimentLog | None,
    observer: Observer,
    stop: Stop,
    clock: Clock,
) -> LogEntry:
    gc.collect()  # a run before this one in the same process holds its weights in cycles
    mx.clear_cache()
    mx.reset_peak_memory()
    model = build_model(spec)
    scorer = task.scorer(model)
    recorder = Recorder(spec, folder, task.metric, scorer, clock, observer, stop)
    batches = task.batches(model)
    trainer = Trainer(
        model,
        spec.optim,
        callbacks=[ExpertLoadMonitor(model, spec.optim.log_interval), *task.callbacks(), recorder],
        checkpointer=recorder.checkpoint,
        objective=task.objective(model),
    )
    checkpoint = folder.latest_checkpoint()
    if checkpoint is not None:
        trainer.restore(checkpoint)
        logger.info("resumed at step %d from %s", trainer.step, checkpoint)
    folder.rewind_metrics(trainer.step, last=spec.optim.max_steps)
    logger.info("%s: %d steps, seed %d", spec.name, spec.optim.max_steps, spec.seed)
    try:
        trainer.train(batches)
    except NonFiniteLoss as error:
        kept = folder.latest_checkpoint()
        raise Diverged(f"{spec.name}: {error} " + (f"It is {kept}." if kept else "None had been saved yet.")) from None
    if trainer.step < spec.optim.max_steps:
        raise Interrupted
    observer.phase(spec, "eval")
    with clock("eval"):
        result = scorer("whole")
        recorder.evaluate(trainer.step)
    if spoilt := [f"{name} is {value}" for name, value in result.items() if not math.isfinite(value)]:
        raise Diverged(f"{spec.name}: after the last step {', '.join(spoilt)}.")
    observer.phase(spec, "sample")
    with clock("sample"):
        sample = task.sample(model)
        atomic_write(folder.samples / f"step-{spec.optim.max_steps}.json", to_json(sample))
    measured = _measured(spec, recorder, result, model, sample["text"])
    entry = _entry(spec, folder, ledger, status="keep", **measured)
    if spec.lora.rank:
        save_lora_adapters(folder.path / "adapter", model, metadata={"base": spec.pretrained})
    atomic_write(folder.result, to_json(entry))
    _log_once(ledger, entry)
    score = result.get(task.metric, math.nan)
    logger.info("done: %s %.4f", task.metric, score)
    observer.done(spec, score)
    return entry


def score_run(folder: RunFolder) -> dict[str, float]:
    """The final scores of a run's last good checkpoint, taken again.

    Raises:
        UserError: no checkpoint that can be read, or data that has changed since.
    """
    spec = read_spec(folder)
    task = make_task(spec)
    check_same_data(folder, task.info["hash"])
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{folder.path} has no checkpoint that can be read: train it first.")
    model = build_model(spec)
    scorer = task.scorer(model)  # of the model that the run started from: some scores compare with it
    load_checkpoint(checkpoint, model)
    return scorer("whole")


def measure_step_s(spec: RunSpec, task: Task) -> float:
    """Seconds per training step on this machine now: the median of a few, compiled, of a model that is thrown away."""
    model = build_model(spec)
    batches = iter(task.batches(model))
    trainer = Trainer(model, with_steps(spec, 1000).optim, objective=task.objective(model))
    seconds = []
    for _ in range(MEASURED_STEPS + 1):
        start = time.perf_counter()
        group = [next(batches) for _ in range(spec.optim.grad_accumulation_steps)]
        trainer.train_step(group[0]) if len(group) == 1 else trainer.train_step_accumulated(group)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first one compiles


def _settle(spec: RunSpec, task: Task) -> RunSpec:
    """The spec with the number of steps that its budget buys."""
    if spec.budget.minutes is None:
        return with_steps(spec, steps_within(spec))
    return with_steps(spec, max(1, int(60 * spec.budget.minutes / measure_step_s(spec, task))))


def _measured(
    spec: RunSpec, recorder: Recorder, result: dict[str, float], model: LanguageModel, sample: str
) -> dict[str, Any]:
    """The fields of the ledger entry of a run that ended well."""
    steps = spec.optim.max_steps
    fields = {name: value for name, value in result.items() if name in MEASUREMENTS}
    return {
        **fields,
        "train_loss": recorder.train_loss,
        "param_count": model.count_parameters(),
        "total_flops": float(steps * flops_per_step(spec)),
        "peak_memory_mb": mx.get_peak_memory() / 1e6,
        "wall_time_s": sum(recorder.seconds.values()),
        "metrics": {
            "steps": steps,
            "tokens": steps * tokens_per_step(spec),
            "tokens_per_s": recorder.tokens_per_s,
            **{name: value for name, value in result.items() if name not in fields},
            **{f"{phase}_s": round(seconds, 3) for phase, seconds in recorder.seconds.items()},
            "curve": recorder.curve,
            "sample": sample,
        },
    }


def _entry(spec: RunSpec, folder: RunFolder, ledger: ExperimentLog | None, **values: Any) -> LogEntry:
    """A ledger line; the run is named by its folder, relative to the ledger, so that both can be moved together."""
    root = ledger.path.parent if ledger else folder.path.parent
    run = os.path.relpath(folder.path, root)
    config = {"run": run, "spec": spec.to_dict()}
    return LogEntry(experiment=spec.name, commit=git_commit(), config=config, seed=spec.seed, **values)


def _log_once(ledger: ExperimentLog | None, entry: LogEntry) -> None:
    """Appends the entry unless the ledger has it: a killed process may have died between the folder and the ledger."""
    if ledger is None:
        return
    ours = (entry.config.get("run"), entry.timestamp)
    if all((other.config.get("run"), other.timestamp) != ours for other in ledger.load()):
        ledger.log(entry)


@contextmanager
def _run_log(folder: RunFolder) -> Iterator[None]:
    """Sends what lmxlab logs to the folder's run.log."""
    handler = logging.FileHandler(folder.log, encoding="utf-8")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk is told by what matters more
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("lmxlab")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
