"""The user's own text: a text, JSONL or parquet file, or a folder of them."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lmxlab.data.corpus import Corpus, Documents
from lmxlab.errors import MissingExtraError, UserError

JSONL = {".jsonl", ".ndjson"}
PARQUET = {".parquet"}
SNIFF_BYTES = 8192


def open_path(path: Path, text_field: str = "text") -> Corpus:
    """The documents of a file or folder: a text file is one document, a JSONL line or a parquet row is one each.

    In a folder every text, JSONL and parquet file counts, in the order of their paths; hidden files, empty files and
    binary files do not.

    Raises:
        UserError: missing, empty, binary or unreadable, or a folder without text.
    """
    try:
        if path.is_dir():
            files = [f for f in _visible_files(path) if f.suffix.lower() in PARQUET or _is_text(f)]
            if not files:
                raise UserError(f"folder {path} holds no text: put .txt, .jsonl or .parquet files there.")
        elif path.exists():
            files = [path]
        else:
            raise UserError(f"no file or folder {path}: check the path, or choose a dataset of `lmxlab data info`.")
        fingerprint = _fingerprint(files, path, text_field)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}.") from error

    def read() -> Documents:
        try:
            return Documents([text for file in files for text in read_file(file, text_field)])
        except OSError as error:
            raise UserError(f"{error.filename or path} cannot be read: {error.strerror}.") from error

    return Corpus(name=path.resolve().stem, source=str(path), fingerprint=fingerprint, read=read)


def read_file(path: Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file, by its ending: .jsonl, .ndjson, .parquet, anything else is text."""
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        return read_parquet(path, text_field)
    return read_jsonl(path, text_field) if suffix in JSONL else iter([read_text(path)])


def read_text(path: Path) -> str:
    r"""A UTF-8 text, with \n for line ends and without a byte order mark.

    Raises:
        UserError: empty, or not UTF-8 text.
    """
    raw = path.read_bytes()
    if not raw:
        raise UserError(f"{path} is empty: give a file that holds text.")
    if b"\0" in raw[:SNIFF_BYTES]:
        raise UserError(f"{path} is a binary file, not text: give UTF-8 text, .jsonl or .parquet.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte 0x{raw[error.start]:02x} at {error.start}): convert it, for example with "
            "iconv, or give .jsonl or .parquet."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    """One document per line: the string in `text_field` of a JSON object. Blank lines are skipped.

    Raises:
        UserError: naming the line that is broken or lacks the field.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error.msg}): mend or remove that line.") from error
        if not isinstance(row, dict):
            raise UserError(f'{path}, line {number} is not a JSON object: write {{"{text_field}": "..."}}.')
        if not isinstance(row.get(text_field), str):
            raise UserError(
                f"{path}, line {number} has no text in field {text_field!r}; its fields are {sorted(row)}: "
                "name the field with text_field."
            )
        # A JSON escape can write half of a surrogate pair, which is no character and has no UTF-8 bytes.
        yield row[text_field].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """One document per row of the column `text_field`; missing values are skipped. Reads one row group at a time.

    Raises:
        ImportError: pyarrow is not installed.
        UserError: not a parquet file, or one without that column.
    """
    parquet = import_parquet()
    try:
        file = parquet.ParquetFile(path)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(f"{path} is not a whole parquet file: {str(error).splitlines()[0]}") from error
    with file:
        if text_field not in file.schema_arrow.names:
            raise UserError(
                f"{path} has no column {text_field!r}; its columns are {file.schema_arrow.names}: "
                "name the column with text_field."
            )
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                if text is not None and not isinstance(text, str):
                    raise UserError(f"{path}: column {text_field!r} holds {type(text).__name__}, not text.")
                if text:
                    yield text


class ParquetTexts:
    """The documents of parquet files, read anew at each iteration: a large dataset is never held in memory."""

    def __init__(self, paths: Sequence[Path], text_field: str, limit: int | None = None):
        self.paths = paths
        self.text_field = text_field
        self.limit = limit

    def __iter__(self) -> Iterator[str]:
        texts = (text for path in self.paths for text in read_parquet(path, self.text_field))
        return islice(texts, self.limit)


def import_parquet() -> Any:
    """`pyarrow.parquet`, or a MissingExtraError that says what to install."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("reading parquet files needs pyarrow: pip install 'lmxlab[hf]'") from error
    return parquet


def _visible_files(folder: Path) -> list[Path]:
    files = (f for f in folder.rglob("*") if not any(part.startswith(".") for part in f.relative_to(folder).parts))
    return sorted(f for f in files if f.is_file() and f.stat().st_size)


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(SNIFF_BYTES)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The end of what was read may cut a character in two.
        return b"\0" not in head and error.start >= SNIFF_BYTES - 3
    return b"\0" not in head


def _fingerprint(files: list[Path], root: Path, text_field: str) -> str:
    digest = hashlib.sha256(f"files-1-{text_field}".encode())
    for path in files:
        name = str(path.relative_to(root)) if path != root else path.suffix
        digest.update(f"\0{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
