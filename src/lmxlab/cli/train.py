"""`lmxlab train`: one model, from a design or a config file, with every setting on the command line."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.live import LiveView
from lmxlab.cli.options import RUNS, Json, Runs, flags_of, option
from lmxlab.cli.render import count, duration, note, number, out, out_json, scaled
from lmxlab.cli.runs import find_run
from lmxlab.cli.train_base import TrainBase, read_base
from lmxlab.data import DataConfig, load_tokenizer, prepare
from lmxlab.errors import UserError
from lmxlab.experiments.designs import adapt
from lmxlab.experiments.example_task import needs_tokenizer
from lmxlab.experiments.finetune import LoRAConfig
from lmxlab.experiments.interrupt import Interrupted, stop_on_signals
from lmxlab.experiments.methods import METHODS, MTP, Method
from lmxlab.experiments.run import execute
from lmxlab.experiments.run_picture import save_run_curves
from lmxlab.experiments.spec import Budget, RunSpec
from lmxlab.experiments.stored import read_result
from lmxlab.experiments.tracking import ExperimentLog, LogEntry
from lmxlab.training.config import TrainConfig
from lmxlab.training.run_folder import RunFolder


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


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="train")(_command(read_base(arguments)))


def _command(base: TrainBase) -> Callable[..., int]:
    """The command, with the settings of the design or file as its defaults, so that --help shows those."""

    method = base.values["method"]
    data_flags = flags_of(base.values["data"], "What to train on.")
    method_flags = flags_of(method, f"How --method {method.name} learns." if method.name else "")
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
        pretrained: Annotated[
            str,
            option(
                "Start from this model: glassllm, a Hugging Face folder, or a run's folder.", "MODEL", default="none"
            ),
        ] = base.get("pretrained"),
        lora: type(lora_flags) = lora_flags,  # type: ignore[valid-type]
        method: Annotated[
            str,
            option(f"Instead of next-token training: {', '.join(filter(None, METHODS))}.", "NAME", default="none"),
        ] = method.name,
        settings: Annotated[
            type(method_flags),  # type: ignore[valid-type]
            tyro.conf.arg(name=method.name or "method-settings"),
        ] = method_flags,
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
          lmxlab train --pretrained glassllm --method sft --data.dataset examples.jsonl --lora.rank 8
          lmxlab train --resume gpt/20260101-120000
        """
        if design != base.source:
            raise UserError(f"The design comes first: lmxlab train {design} --...")
        data_config = DataConfig(**dataclasses.asdict(data))
        learn = type(base.values["method"])(**dataclasses.asdict(settings))
        prepared = prepare(data_config) if learn.of_text else None
        changes = {key: value for key, value in dataclasses.asdict(model).items() if value is not None}
        if pretrained and changes:
            raise UserError(f"--model changes nothing of a pretrained model: leave out {', '.join(sorted(changes))}.")
        vocab_size = _vocab_size(data_config, learn) if prepared is None else prepared.vocab_size
        config = adapt(base.model(vocab_size, seq_len), changes)
        if isinstance(learn, MTP):
            config = dataclasses.replace(config, mtp_n_predict=learn.n_predict, mtp_lambda=learn.weight)
        spec = RunSpec(
            name=name,
            model=config,
            data=data_config,
            optim=TrainConfig(**dataclasses.asdict(optim)),
            seq_len=seq_len,
            budget=base.values["budget"] if budget == BudgetFlags() else Budget(**dataclasses.asdict(budget)),
            seed=seed,
            eval_tokens=eval_tokens,
            sample_tokens=sample_tokens,
            pretrained=pretrained,
            lora=LoRAConfig(**dataclasses.asdict(lora)),
            method=learn,
        )
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
        save_run_curves(folder, learn.metric, folder.path / "curves.png")
        _report(entry, learn, folder, ledger, json)
        return 0

    return train


def _vocab_size(data: DataConfig, method: Method) -> int:
    """That of a tokenizer which is there already; what has none is refused by the method's task."""
    if data.tokenizer.partition(":")[0] in ("char", "bpe"):
        raise UserError(needs_tokenizer(method.name))
    return load_tokenizer(data.tokenizer).vocab_size


def _root(folder: RunFolder, runs: Path) -> Path:
    """The folder of the ledger that a run belongs to: the nearest one above it that has a ledger, else `runs`."""
    return next((above for above in folder.path.resolve().parents if (above / "results.jsonl").exists()), runs)


def _report(entry: LogEntry, method: Method, folder: RunFolder, ledger: ExperimentLog, json: bool) -> None:
    if json:
        out_json({**dataclasses.asdict(entry), "folder": str(folder.path)})
        return
    if method.of_text:
        out(f"val_bpb      {number(entry.val_bpb)} bits per byte")
        out(f"val_loss     {number(entry.val_loss)} nats per token")
    else:
        scores = {name: entry.value(name) for name in ("val_loss", *entry.metrics) if name.startswith("val_")}
        for name, value in scores.items():
            if value is not None:
                out(f"{name:<12} {number(value)}")
    out(f"train_loss   {number(entry.train_loss)}" + ("" if method.name else " nats per token"))
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
    out(f"curves   {folder.path / 'curves.png'}")
    out(f"ledger   {ledger.path}")
    out(f"more     lmxlab generate {folder.path} --prompt ...")
