"""`lmxlab data prepare | info`: download, tokenize and split a dataset once; later commands find it in the cache."""

from typing import Annotated, Any

import tyro
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.render import note, out, out_json
from lmxlab.data import DataConfig, PreparedData, prepare
from lmxlab.data.sources import default_dataset, list_datasets

Dataset = Annotated[
    Positional[str], tyro.conf.arg(metavar="DATASET", help="Name of a dataset, or a text/JSONL/parquet file or folder.")
]
Tokenizer = Annotated[
    str, tyro.conf.arg(metavar="NAME", help="char, bpe:SIZE, tiktoken:NAME, hf:REPO, or a tokenizer's JSON file.")
]
Json = Annotated[bool, tyro.conf.arg(help="Print JSON instead of text.")]

SHOWN_TOKENS = 200


def register(app: SubcommandApp, arguments: list[str]) -> None:
    group = SubcommandApp()
    group.__doc__ = "Prepare a dataset, or look at one.\n\nExample: lmxlab data prepare shakespeare"
    group.command(name="prepare")(prepare_)
    group.command(name="info")(info)
    app.command(group, name="data")


def prepare_(
    dataset: Dataset = "shakespeare",
    /,
    *,
    tokenizer: Tokenizer = "char",
    val_fraction: float = 0.1,
    max_documents: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    cache_dir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: Json = False,
) -> None:
    """Download, tokenize and split a dataset; `train` and `compare` then find it in the cache.

    Example: lmxlab data prepare book.txt --tokenizer bpe:1024

    Args:
        val_fraction: Share of the text that is held out.
        max_documents: Read no more documents than this.
        cache_dir: Where to keep it (default: ~/.cache/lmxlab).
    """
    config = DataConfig(dataset, tokenizer, val_fraction, max_documents=max_documents, cache_dir=cache_dir)
    note(f"preparing {dataset} with {tokenizer} ...")
    numbers = _numbers(prepare(config), config)
    if json:
        out_json(numbers)
    else:
        _print(numbers)


def info(
    dataset: Annotated[Positional[str | None], tyro.conf.arg(metavar="DATASET")] = None,
    /,
    *,
    tokenizer: Tokenizer = "char",
    cache_dir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: Json = False,
) -> None:
    """What datasets there are; or, of one: its numbers and how it begins.

    Example: lmxlab data info pydocs --tokenizer bpe:1024

    Args:
        dataset: A dataset's name or a path; none lists the datasets.
        cache_dir: Where prepared data is kept (default: ~/.cache/lmxlab).
    """
    if dataset is None:
        datasets = list_datasets()
        if json:
            out_json(datasets)
            return
        out("Datasets (any text, JSONL or parquet file, or a folder of them, will do, too):")
        for entry in datasets:
            place = "here" if entry["available"] else "download" if entry["network"] else "not installed"
            out(f"  {entry['name']:<16} {entry['size']:<24} {place:<14} {entry['description']}")
        return
    config = DataConfig(dataset, tokenizer, cache_dir=cache_dir)
    note(f"preparing {dataset} with {tokenizer} ...")
    prepared = prepare(config)
    numbers = _numbers(prepared, config)
    start = prepared.tokenizer.decode([int(token) for token in prepared.train[:SHOWN_TOKENS]])
    if json:
        out_json({**numbers, "start": start})
        return
    _print(numbers)
    out("\nbegins:")
    for line in start.strip().splitlines():
        out(f"  {line}")


def default() -> str:
    """The dataset for a command that was not given one, with a line when it is not Shakespeare."""
    name, remark = default_dataset()
    if remark:
        note(f"note: {remark}")
    return name


def _numbers(prepared: PreparedData, config: DataConfig) -> dict[str, Any]:
    return {
        "dataset": config.dataset,
        "tokenizer": config.tokenizer,
        "vocabulary": prepared.vocab_size,
        "training tokens": len(prepared.train),
        "validation tokens": len(prepared.val),
        **prepared.info,
        "hash": prepared.hash,
    }


def _print(numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        out(f"{name + ':':<20} {value:,}" if type(value) is int else f"{name + ':':<20} {value}")
