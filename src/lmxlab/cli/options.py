"""Options that several commands share, and how an option is described."""

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
Tokenizer = Annotated[str, option("char, bpe:SIZE, tiktoken:NAME, hf:REPO, or a tokenizer's JSON file.", "NAME")]
DATASET = "Name of a dataset (`lmxlab data info`), or a text, JSONL or parquet file or a folder of them."
