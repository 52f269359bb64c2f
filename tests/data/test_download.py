"""Downloads against a server on this machine: whole or not at all, with patience; and the datasets that need them."""

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lmxlab.data import DataConfig, describe, prepare, sources
from lmxlab.data.download import ATTEMPTS, download
from lmxlab.errors import UserError


class Server:
    """Serves `files` by path; `plan[path]` is a list of answers to give first: a status, or "cut" for a torn body."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.plan: dict[str, list[int | str]] = {}
        self.asked: list[str] = []
        self.authorization: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.authorization.append(self.headers.get("Authorization"))
                steps = outer.plan.get(self.path, [])
                step = steps.pop(0) if steps else 200
                body = outer.files.get(self.path)
                if isinstance(step, int) and (step != 200 or body is None):
                    self.send_error(step if step != 200 else 404)
                    return
                assert body is not None
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if step == "cut" else body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr("lmxlab.data.download.BACKOFF_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.stop()


def parquet_bytes(texts: list[str]) -> bytes:
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    import pyarrow as pa

    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


def test_a_file_arrives_whole_and_is_asked_for_once(server, tmp_path):
    server.files["/a"] = b"content" * 1000
    for _ in range(2):
        path = download(server.url + "/a", tmp_path / "deep" / "a")
        assert path.read_bytes() == server.files["/a"]
    assert server.asked == ["/a"]
    assert [p.name for p in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("trouble", [[500, 503], ["cut"], [429, "cut", 502, "cut"]])
def test_passing_trouble_is_waited_out(server, tmp_path, trouble):
    server.files["/a"] = b"content" * 1000
    server.plan["/a"] = list(trouble)
    assert download(server.url + "/a", tmp_path / "a").read_bytes() == server.files["/a"]
    assert len(server.asked) == len(trouble) + 1


def test_lasting_trouble_ends_after_five_attempts_and_leaves_nothing(server, tmp_path):
    server.files["/a"] = b"content" * 1000
    server.plan["/a"] = ["cut"] * 9
    with pytest.raises(UserError, match="5 attempts.*check the network"):
        download(server.url + "/a", tmp_path / "a")
    assert len(server.asked) == ATTEMPTS == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "message"), [(404, "404"), (403, "HF_TOKEN"), (401, "HF_TOKEN")])
def test_a_lasting_refusal_is_not_repeated(server, tmp_path, status, message):
    server.plan["/a"] = [status] * 9
    with pytest.raises(UserError, match=message):
        download(server.url + "/a", tmp_path / "a")
    assert len(server.asked) == 1


def test_the_token_goes_to_the_hub_only(server, tmp_path, monkeypatch):
    server.files["/a"] = server.files["/b"] = b"x"
    monkeypatch.setenv("HF_TOKEN", "secret")
    download(server.url + "/a", tmp_path / "a")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    download(server.url + "/b", tmp_path / "b")
    assert server.authorization == ["Bearer secret", None]


def test_no_network(server, tmp_path):
    server.stop()
    with pytest.raises(UserError, match="cannot be downloaded"):
        download(server.url + "/a", tmp_path / "a")


def test_tinyshakespeare_is_checked(server, tmp_path, monkeypatch):
    text = b"First Citizen:\nSpeak.\n" * 50
    server.files["/input.txt"] = text
    monkeypatch.setattr(sources, "TINYSHAKESPEARE_URL", server.url + "/input.txt")
    config = DataConfig("tinyshakespeare", cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="SHA-256"):
        prepare(config)
    monkeypatch.setattr(sources, "TINYSHAKESPEARE_SHA256", hashlib.sha256(text).hexdigest())
    data = prepare(config)
    assert data.tokenizer.decode([*data.train, *data.val]) == text.decode()
    n_asked = len(server.asked)
    assert prepare(config).hash == data.hash
    assert len(server.asked) == n_asked


def test_the_published_tinyshakespeare_is_the_one_pinned(tinyshakespeare: Path):
    assert hashlib.sha256(tinyshakespeare.read_bytes()).hexdigest() == sources.TINYSHAKESPEARE_SHA256


def climbmix(server: Server) -> None:
    place = "/datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_%05d.parquet"
    server.files[place % 0] = parquet_bytes([f"zero {i}" for i in range(30)])
    server.files[place % 1] = parquet_bytes([f"one {i}" for i in range(30)] + ["held 1"])
    server.files[place % 6542] = parquet_bytes([f"held {i}" for i in range(20)])


def test_climbmix_trains_on_the_shards_asked_for_and_holds_out_the_last(server, tmp_path):
    climbmix(server)
    data = prepare(DataConfig("climbmix", shards=2, cache_dir=str(tmp_path)))
    assert data.info["documents"] == {"train": 60, "val": 20}  # "held 1" is not trained on
    bos = data.tokenizer.bos_id
    train = "".join("|" if t == bos else data.tokenizer.decode([t]) for t in data.train)
    assert train == "".join(f"|zero {i}" for i in range(30)) + "".join(f"|one {i}" for i in range(30))
    assert sorted(file.name for file in (tmp_path / "downloads").glob("*/*")) == [
        "shard_00000.parquet",
        "shard_00001.parquet",
        "shard_06542.parquet",
    ]


def test_climbmix_from_the_cache_needs_no_network(server, tmp_path):
    climbmix(server)
    config = DataConfig("climbmix", tokenizer="bpe:300", cache_dir=str(tmp_path))
    first = prepare(config)
    asked = list(server.asked)
    assert prepare(config).hash == first.hash
    assert server.asked == asked and len(asked) == 2


def test_climbmix_max_documents(server, tmp_path):
    climbmix(server)
    data = prepare(DataConfig("climbmix", max_documents=10, val_fraction=0.25, cache_dir=str(tmp_path)))
    assert data.info["documents"] == {"train": 10, "val": 3}


def test_climbmix_has_so_many_shards(tmp_path):
    with pytest.raises(UserError, match="climbmix has 6542"):
        prepare(DataConfig("climbmix", shards=6543, cache_dir=str(tmp_path)))


def test_a_torn_parquet_file_is_fetched_again(server, tmp_path):
    climbmix(server)
    path = "/datasets/karpathy/climbmix-400b-shuffle/resolve/main/shard_00000.parquet"
    whole = server.files[path]
    server.files[path] = whole[:-10]  # whole by its length, torn by its content
    config = DataConfig("climbmix", cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="5 attempts"):
        prepare(config)
    server.files[path] = whole
    assert prepare(config).info["documents"]["train"] == 30


def test_tinystories_lists_the_repository_and_splits_by_document(server, tmp_path):
    repo = "karpathy/tinystories-gpt4-clean"
    names = ["README.md", "data/b.parquet", "data/a.parquet"]
    server.files[f"/api/datasets/{repo}"] = json.dumps({"siblings": [{"rfilename": n} for n in names]}).encode()
    for name in ("a", "b"):
        path = f"/datasets/{repo}/resolve/main/data/{name}.parquet"
        server.files[path] = parquet_bytes([f"{name} {i}" for i in range(20)])
    one = prepare(DataConfig("tinystories", cache_dir=str(tmp_path)))
    assert sum(one.info["documents"].values()) == 20
    two = prepare(DataConfig("tinystories", shards=2, cache_dir=str(tmp_path)))
    assert two.info["documents"] == {"train": 36, "val": 4}
    assert server.asked.count(f"/api/datasets/{repo}") == 1


def test_a_repository_without_parquet(server, tmp_path):
    server.files["/api/datasets/karpathy/tinystories-gpt4-clean"] = b'{"siblings": [{"rfilename": "README.md"}]}'
    with pytest.raises(UserError, match=r"no parquet files; it has \['README.md'\]"):
        prepare(DataConfig("tinystories", cache_dir=str(tmp_path)))


def test_describe_does_not_download(server, tmp_path):
    about = describe(DataConfig("climbmix", cache_dir=str(tmp_path)))
    assert about["prepared"] is False and about["network"] is True
    assert server.asked == []
