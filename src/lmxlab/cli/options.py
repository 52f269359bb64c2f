"""Options that several commands share, and how an option is described."""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro


def option(help: str, metavar: str | None = None, default: str | None = None, aliases: list[str] | None = None) -> Any:
    """An option's help; `default` says in words what happens without it, where the value itself (None) would not."""
    hint = f"(default: {default})" if default is not None else None
    if default == "":
        hint = ""
    return tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint=hint, aliases=aliases)


Json = Annotated[bool, option("Print the result as JSON.", default="")]
Runs = Annotated[Path, option("Where run folders and the ledger (results.jsonl) are.", "FOLDER")]
RUNS = Path("runs")
Tokenizer = Annotated[str, option("char, bpe:SIZE, tiktoken:NAME, hf:REPO, glassllm, or a JSON file.", "NAME")]
DATASET = "Name of a dataset (`lmxlab data info`), or a text, JSONL or parquet file or a folder of them."


def flags_of(config: Any, summary: str, leave_out: tuple[str, ...] = ()) -> Any:
    """A dataclass with the fields, values and documentation of `config`, but without its checks.

    tyro would report a failed check in a box, with names of its own; built from these flags afterwards, the config
    raises the one line that every bad input gets.
    """
    kind = type(config)
    hints = typing.get_type_hints(kind)
    fields = [
        (f.name, hints[f.name], dataclasses.field(default=getattr(config, f.name)))
        for f in dataclasses.fields(kind)
        if f.name not in leave_out
    ]
    flags = dataclasses.make_dataclass(f"{kind.__name__}Flags", fields, frozen=True)
    described = inspect.getdoc(kind) or ""
    start, end = (
        described.find(f"{section}:") for section in ("Attributes" if "Attributes:" in described else "Args", "Raises")
    )
    flags.__doc__ = f"{summary}\n\n{described[start : end if end > 0 else None]}"
    return flags()
