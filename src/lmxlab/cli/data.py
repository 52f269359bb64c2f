"""`lmxlab data prepare | info`: download, tokenize and split a dataset once; later commands find it in the cache."""

from typing import Annotated, Any

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import DATASET, Json, Tokenizer, option
from lmxlab.cli.render import note, out, out_json
from lmxlab.data import DataConfig, default_dataset, describe, list_datasets, prepare

Cache = Annotated[str | None, option("Where prepared data is kept.", "FOLDER", "~/.cache/lmxlab")]


def register(app: SubcommandApp, arguments: list[str]) -> None:
    group = SubcommandApp()
    group.__doc__ = "Prepare a dataset, or look at one.\n\nExample: lmxlab data prepare shakespeare"
    group.command(name="prepare")(prepare_)
    group.command(name="info")(info)
    app.command(group, name="data")


def prepare_(
    dataset: Annotated[Positional[str], option(DATASET, "DATASET")] = "shakespeare",
    /,
    *,
    tokenizer: Tokenizer = "char",
    val_fraction: Annotated[float, option("Share of the text that is held out.")] = 0.1,
    seed: Annotated[int, option("Decides which documents are held out.")] = 0,
    max_documents: Annotated[int | None, option("Read no more documents than this.", "N", "all")] = None,
    text_field: Annotated[str, option("Field or column of JSONL and parquet files that holds the text.")] = "text",
    shards: Annotated[int, option("Training files to read of a dataset that comes in many (climbmix).")] = 1,
    cache_dir: Cache = None,
    json: Json = False,
) -> None:
    """Download, tokenize and split a dataset; `train` and `compare` then find it in the cache.

    Example: lmxlab data prepare book.txt --tokenizer bpe:1024
    """
    note(f"preparing {dataset} with {tokenizer} ...")
    config = DataConfig(dataset, tokenizer, val_fraction, seed, max_documents, cache_dir, text_field, shards)
    _print(describe(prepare(config)), json)


def info(
    dataset: Annotated[Positional[str | None], option(DATASET, "DATASET", "list them all")] = None,
    /,
    *,
    tokenizer: Tokenizer = "char",
    cache_dir: Cache = None,
    json: Json = False,
) -> None:
    """What datasets there are; or, of one: what it is and whether it is prepared.

    Example: lmxlab data info pydocs --tokenizer bpe:1024
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
    _print(describe(DataConfig(dataset, tokenizer, cache_dir=cache_dir)), json)


def default() -> str:
    """The dataset for a command that was not given one, with a line when it is not Shakespeare."""
    name, remark = default_dataset()
    if remark:
        note(f"note: {remark}")
    return name


def _print(numbers: dict[str, Any], json: bool) -> None:
    if json:
        out_json(numbers)
        return
    for name, value in numbers.items():
        parts = value if isinstance(value, dict) else {"": value}
        shown = (f"{part} {n:,}" if type(n) is int else f"{part} {n}" for part, n in parts.items())
        out(f"{name + ':':<12} {', '.join(text.strip() for text in shown)}")
