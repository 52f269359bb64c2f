"""The user's files: read as they are, refused with a line that says why."""

import json
from pathlib import Path

import pytest

from lmxlab.data.textfiles import open_path, read_text
from lmxlab.errors import UserError


def documents(path: Path, text_field: str = "text") -> list[str]:
    return list(open_path(path, text_field).read().texts)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(path: Path, **columns: list) -> Path:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_a_text_file_is_one_document(tmp_path):
    assert documents(write(tmp_path / "a.txt", "one\n\ntwo é\n")) == ["one\n\ntwo é\n"]


def test_line_ends_and_byte_order_mark(tmp_path):
    assert read_text(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")) == "one\ntwo\nthree\n"


def test_jsonl_lines_are_documents(tmp_path):
    rows = [{"text": "one\nline"}, {"text": "é", "more": 1}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert documents(path) == ["one\nline", "é"]


def test_jsonl_other_field(tmp_path):
    assert documents(write(tmp_path / "a.ndjson", '{"body": "x"}'), "body") == ["x"]


def test_jsonl_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    path = write(tmp_path / "a.jsonl", r'{"text": "a\ud83d b\ud83d\ude42"}')
    assert documents(path) == ["a\ufffd b🙂"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', "line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
        ('{"body": "x", "id": 1}', r"line 3 has no text in field 'text'; its fields are \['body', 'id'\]"),
        ('{"text": 5}', "line 3 has no text in field 'text'"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        documents(path)


def test_parquet_rows_are_documents(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=["one", None, "two", "", "three"], id=[1, 2, 3, 4, 5])
    assert documents(path) == ["one", "two", "three"]


def test_parquet_without_the_column(tmp_path):
    path = parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(UserError, match=r"no column 'text'; its columns are \['body', 'id'\]"):
        documents(path)
    with pytest.raises(UserError, match="holds int, not text"):
        documents(path, "id")


def test_torn_parquet(tmp_path):
    whole = parquet(tmp_path / "a.parquet", text=["x"] * 100).read_bytes()
    with pytest.raises(UserError, match="not a whole parquet file"):
        documents(write(tmp_path / "b.parquet", whole[: len(whole) // 2]))


def test_a_folder_in_the_order_of_its_paths(tmp_path):
    write(tmp_path / "b.txt", "second")
    write(tmp_path / "a" / "deep.md", "first")
    write(tmp_path / "c.jsonl", '{"text": "third"}\n{"text": "fourth"}')
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    write(tmp_path / ".hidden" / "x.txt", "not this")
    parquet(tmp_path / "d.parquet", text=["fifth"])
    assert documents(tmp_path) == ["first", "second", "third", "fourth", "fifth"]


def test_a_character_cut_by_the_sniffing_is_still_text(tmp_path):
    text = "x" * 8191 + "é" * 10
    write(tmp_path / "a.txt", text)
    assert documents(tmp_path) == [text]


def test_fingerprint_follows_content_and_names(tmp_path):
    one = write(tmp_path / "one" / "a.txt", "text").parent
    two = write(tmp_path / "two" / "a.txt", "text").parent
    assert open_path(one).fingerprint == open_path(two).fingerprint
    assert open_path(one, "body").fingerprint != open_path(one).fingerprint
    write(two / "a.txt", "TEXT")
    assert open_path(one).fingerprint != open_path(two).fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x7fELF\0\0\0", "is a binary file"),
        (b"caf\xe9 au lait", r"is not UTF-8 text \(byte 0xe9 at 3\)"),
    ],
)
def test_files_that_hold_no_text(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        documents(write(tmp_path / "a.txt", content))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*missing\.txt"):
        open_path(tmp_path / "missing.txt")


def test_folder_without_text(tmp_path):
    write(tmp_path / "data" / "a.bin", b"\0\1\2")
    with pytest.raises(UserError, match="holds no text"):
        open_path(tmp_path / "data")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"a\.txt cannot be read: Permission denied"):
        open_path(path)
