"""Files from the network: whole or not at all, with patience."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmxlab.errors import UserError
from lmxlab.files import atomic_file

ATTEMPTS = 5
BACKOFF_S = 1.0  # waited after the first failed attempt; twice that after the second, and so on
TIMEOUT_S = 60
log = logging.getLogger(__name__)


def hub_endpoint() -> str:
    """The Hugging Face hub, or the mirror that `HF_ENDPOINT` names."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_file(repo: str, name: str) -> str:
    """The address of a file in a dataset repository."""
    from urllib.parse import quote

    return f"{hub_endpoint()}/datasets/{repo}/resolve/main/{quote(name)}"


def hub_parquet_names(repo: str) -> list[str]:
    """The parquet files of a dataset repository, sorted.

    Raises:
        UserError: it has none, or cannot be reached.
    """
    url = f"{hub_endpoint()}/api/datasets/{repo}"
    answer = _with_patience(url, lambda response: json.load(response))
    names = sorted(entry["rfilename"] for entry in answer.get("siblings", []))
    parquet = [name for name in names if name.endswith(".parquet")]
    if not parquet:
        raise UserError(f"the dataset repository {repo} has no parquet files; it has {names[:10]}.")
    return parquet


def download(url: str, path: Path, check: Callable[[Path], None] | None = None) -> Path:
    """Brings `url` to the file `path`, unless it is there already.

    The file is written under a temporary name, compared with the announced length, checked, synced and renamed, so that
    `path` is whole whenever it exists. There are `ATTEMPTS` attempts, with growing pauses.

    Args:
        check: raises ValueError when the content is not what it should be.

    Raises:
        UserError: the address is wrong, access is denied, the network fails, or the disk is full.
    """
    if path.is_file():
        return path

    def store(response: Any) -> None:
        announced = response.headers.get("Content-Length")

        def whole(arrived: Path) -> None:
            size = arrived.stat().st_size
            if announced is not None and int(announced) != size:
                raise ValueError(f"{size} of {announced} bytes arrived")
            if check:
                check(arrived)

        with atomic_file(path, whole) as file:
            shutil.copyfileobj(response, file, 1 << 20)

    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s", url)
    _with_patience(url, store)
    return path


def _with_patience(url: str, use: Callable[[Any], Any]) -> Any:
    # Here, because they cost every command 40 ms and few download anything.
    import ssl
    import urllib.error
    import urllib.request
    from http.client import HTTPException

    headers = {"User-Agent": "lmxlab"}
    token = os.environ.get("HF_TOKEN")
    if token and url.startswith(hub_endpoint() + "/"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, headers=headers)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return use(response)
        except urllib.error.HTTPError as error:
            failure = f"{error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                advice = "; set HF_TOKEN to a token with access" if error.code in (401, 403) else ""
                raise UserError(f"{url} cannot be downloaded: {failure}{advice}.") from error
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError, ValueError) as error:
            failure = str(getattr(error, "reason", error))
        if attempt < ATTEMPTS:
            log.warning("attempt %d of %d for %s: %s", attempt, ATTEMPTS, url, failure)
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
    raise UserError(
        f"{url} cannot be downloaded ({failure}; {ATTEMPTS} attempts): check the network, or use a dataset that needs "
        "none, such as shakespeare or pydocs, or a file of your own."
    )
