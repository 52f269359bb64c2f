"""`lmxlab train`: one model, from a design or a config file, with every setting on the command line."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.data import default
from lmxlab.cli.live import LiveView
from lmxlab.cli.options import RUNS, Json, Runs, flags_of, option
from lmxlab.cli.render import count, duration, note, number, out, out_json, scaled
from lmxlab.cli.runs import find_run
from lmxlab.core.config import ModelConfig
from lmxlab.data import DataConfig, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.designs import adapt, find_design
from lmxlab.experiments.finetune import LoRAConfig
from lmxlab.experiments.interrupt import Interrupted, stop_on_signals
from lmxlab.experiments.loaded import base_tokenizer
from lmxlab.experiments.run import execute
from lmxlab.experiments.spec import LAB_OPTIM, SECTIONS, Budget, RunSpec, from_table
from lmxlab.experiments.stored import read_result, read_spec
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder

DEFAULT_DESIGN = "gpt"


def _own(help: str, metavar: str) -> Any:
    return option(help, metavar, default="the design's")


@dataclass(frozen=True)
class ModelFlags:
    """Changes to the design. The [model] table of a config file takes every other field of the model, too."""

    n_layers: Annotated[int | None, _own("Depth.", "N")] = None
    d_model: Annotated[int | None, _own("Width.", "N")] = None
    n_heads: Annotated[int | None, _own("Attention heads.", "N")] = None
    n_kv_heads: Annotated[int | None, _own("Key/value heads of grouped-query attention.", "N")] = None
    d_ff: Annotated[int | None, _own("Width of the feed-forward layers.", "N")] = None
    attention: Annotated[str | None, _own("Such as mha, gqa.", "NAME")] = None
    ffn: Annotated[str | None, _own("Such as standard, gated, relu2.", "NAME")] = None
    norm: Annotated[str | None, _own("rms_norm or layer_norm.", "NAME")] = None
    position: Annotated[str | None, _own("Such as rope, sinusoidal, learned, alibi, none.", "NAME")] = None
    dropout: Annotated[float | None, _own("Dropout probability.", "P")] = None


@dataclass(frozen=True)
class BudgetFlags:
    """How long to train: give one of these, or --optim.max-steps."""

    flops: Annotated[float | None, option("Of forward and backward passes, such as 2e12.", "N", default="")] = None
    minutes: Annotated[float | None, option("Minutes, turned into steps by measuring first.", "M", default="")] = None
    steps: Annotated[int | None, option("Optimizer steps.", "N", default="")] = None
    tokens: Annotated[int | None, option("Training tokens.", "N", default="")] = None


@dataclass(frozen=True)
class _Base:
    """What the flags change: the settings of a design, a config file or a stored run.

    Attributes:
        source: as typed; None for a stored run.
        model: `(vocab_size, seq_len) -> ModelConfig`.
        values: the other fields of RunSpec that are known.
    """

    source: str | None
    model: Callable[[int, int], ModelConfig]
    values: dict[str, Any]

    def get(self, name: str) -> Any:
        default = next(f for f in dataclasses.fields(RunSpec) if f.name == name)
        return self.values.get(name, default.default)


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="train")(_command(_base(arguments)))


def _command(base: _Base) -> Callable[..., int]:
    """The command, with the settings of the design or file as its defaults, so that --help shows those."""

    data_flags = flags_of(base.values["data"], "What to train on.")
    lora_flags = flags_of(base.values["lora"], "Adapters to train over the model, instead of all of it.")
    optim_flags = flags_of(base.values["optim"], "How to train.", leave_out=("seed",))

    def train(
        design: Annotated[
            Positional[str | None],
            option(
                "What to train; comes first. An architecture (`lmxlab list`) at laboratory size, a preset such as "
                "gpt_10m, or a config file (TOML) with the tables [model], [data], [optim], [budget]. Flags change "
                "what it says.",
                "DESIGN | FILE",
                default=base.source or "the run's",
            ),
        ] = base.source,
        /,
        *,
        name: Annotated[str, option("What to call the run.", "NAME")] = base.get("name"),
        seed: Annotated[int, option("Decides the initial weights and the order of the data.")] = base.get("seed"),
        seq_len: Annotated[int, option("Context in tokens.")] = base.get("seq_len"),
        eval_tokens: Annotated[
            int, option("Validation tokens that the score is taken on, spread over the split; 0 for all of it.")
        ] = base.get("eval_tokens"),
        sample_tokens: Annotated[int, option("Length of the sample text.")] = base.get("sample_tokens"),
        budget: BudgetFlags = BudgetFlags(),
        data: type(data_flags) = data_flags,  # type: ignore[valid-type]  # made above
        optim: type(optim_flags) = optim_flags,  # type: ignore[valid-type]
        model: ModelFlags = ModelFlags(),
        lora: type(lora_flags) = lora_flags,  # type: ignore[valid-type]
        resume: Annotated[
            str | None,
            option("Go on with an interrupted run: its folder, or its name in `lmxlab log list`.", "RUN", default=""),
        ] = None,
        runs: Runs = RUNS,
        json: Json = False,
    ) -> int:
        """Train one model and keep everything about it in a run folder.

        Ctrl-C ends the step in progress, saves, and says how to go on.

        Example calls:
          lmxlab train llama --budget.minutes 2
          lmxlab train my.toml --optim.learning-rate 1e-3 --model.d-model 192
          lmxlab train --resume gpt/20260101-120000
        """
        if design != base.source:
            raise UserError(f"The design comes first: lmxlab train {design} --...")
        data_config = DataConfig(**dataclasses.asdict(data))
        prepared = prepare(data_config)
        changes = {key: value for key, value in dataclasses.asdict(model).items() if value is not None}
        spec = RunSpec(
            name=name,
            model=adapt(base.model(prepared.vocab_size, seq_len), changes),
            data=data_config,
            optim=TrainConfig(**dataclasses.asdict(optim)),
            seq_len=seq_len,
            budget=base.values["budget"] if budget == BudgetFlags() else Budget(**dataclasses.asdict(budget)),
            seed=seed,
            eval_tokens=eval_tokens,
            sample_tokens=sample_tokens,
            pretrained=base.get("pretrained"),
            lora=LoRAConfig(**dataclasses.asdict(lora)),
        )
        if spec.pretrained and changes:
            raise UserError(f"--model changes nothing of a pretrained model: leave out {', '.join(sorted(changes))}.")
        folder = RunFolder.create(runs, name) if resume is None else find_run(resume, runs)
        ledger = ExperimentLog(_root(folder, runs) / "results.jsonl")
        if resume is not None and read_result(folder) is not None:
            note(f"{folder.path} has ended already; this is its result.")
        view = LiveView([spec], f"{name} on {data_config.dataset}, in {folder.path}")
        with stop_on_signals() as stop:
            try:
                with view.shown():
                    entry = execute(spec, folder, prepared, ledger, view, stop, resume=resume is not None)
            except Interrupted:
                note("Stopped; the state is saved. Go on with:")
                note(f"  lmxlab train --resume {folder.path}")
                return 130
            except UserError:
                folder.remove_unused()  # refused before the first step
                raise
        _report(entry, folder, ledger, json)
        return 0

    return train


def _base(arguments: list[str]) -> _Base:
    """Where the flags start from: `train DESIGN ...`, else the run of --resume, else the default design."""
    source = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("-") else None
    if source is None and (run := _option(arguments, "--resume")) is not None:
        spec = read_spec(find_run(run, Path(_option(arguments, "--runs") or RUNS)))
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(RunSpec)}
        return _Base(None, lambda vocab_size, seq_len: spec.model, values)
    design = find_design(source or DEFAULT_DESIGN)
    table = design.settings
    values = {key: value for key, value in table.items() if key not in (*SECTIONS, "model")}
    values |= {section: from_table(kind, table.get(section, {}), section) for section, kind in SECTIONS.items()}
    if "dataset" not in table.get("data", {}):
        values["data"] = dataclasses.replace(values["data"], dataset=default())
    if table.get("pretrained") and "tokenizer" not in table.get("data", {}):
        own = base_tokenizer(table["pretrained"])
        values["data"] = dataclasses.replace(values["data"], tokenizer=own)
    values["optim"] = from_table(TrainConfig, {**LAB_OPTIM.to_dict(), **table.get("optim", {})}, "optim")
    return _Base(source or DEFAULT_DESIGN, design.model, {"name": design.name, **values})


def _option(arguments: list[str], flag: str) -> str | None:
    """The value after `flag`, looked up before tyro parses: it decides what tyro's defaults are."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def _root(folder: RunFolder, runs: Path) -> Path:
    """The folder of the ledger that a run belongs to: the nearest one above it that has a ledger, else `runs`."""
    return next((above for above in folder.path.resolve().parents if (above / "results.jsonl").exists()), runs)


def _report(entry: LogEntry, folder: RunFolder, ledger: ExperimentLog, json: bool) -> None:
    if json:
        out_json({**dataclasses.asdict(entry), "folder": str(folder.path)})
        return
    out(f"val_bpb      {number(entry.val_bpb)} bits per byte")
    out(f"val_loss     {number(entry.val_loss)} nats per token")
    out(f"train_loss   {number(entry.train_loss)} nats per token")
    out(f"parameters   {entry.param_count:,}")
    out(f"tokens       {count(entry.value('tokens'))}")
    out(f"FLOPs        {scaled(entry.total_flops)}")
    speed = entry.value("tokens_per_s")  # none after a single step, which is the one that compiles
    out(f"training     {duration(entry.value('train_s'))}" + (f" ({speed:,.0f} tokens/s)" if speed else ""))
    rest = {name: entry.value(f"{name}_s") for name in ("data", "compile", "eval", "checkpoint", "sample")}
    out("besides      " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in rest.items() if seconds))
    out("\nsample:")
    for line in str(entry.metrics.get("sample", "")).strip().splitlines():
        out(f"  {line}")
    out(f"\nrun      {folder.path}")
    out(f"ledger   {ledger.path}")
    out(f"more     lmxlab generate {folder.path} --prompt ...")
