"""Arrays in files: what is written is read; a disk that is full is told as everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from lmxlab.core.array_file import write_arrays

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import lmxlab
import mlx.core as mx
from lmxlab.models.export import export_model
from lmxlab.models.llama import llama_tiny
from lmxlab.models.prompt_cache import save_prompt_cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes past the limit then fail as on a full disk
model = lmxlab.LanguageModel(llama_tiny())
_, cache = model(mx.array([[1, 2, 3]]), cache=model.make_cache())
mx.eval(model.parameters())
resource.setrlimit(resource.RLIMIT_FSIZE, (600, -1))
root = Path(sys.argv[1])
for write in (lambda: export_model(model, root / "model"), lambda: save_prompt_cache(root / "chat", cache, model)):
    try:
        write()
    except OSError as error:
        print("OSError:", error)
"""


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays = {"a": mx.arange(5), "b": mx.ones((2, 3), mx.bfloat16)}
    write_arrays(tmp_path / "x.safetensors", arrays, {"format": "pt"})
    found, metadata = mx.load(str(tmp_path / "x.safetensors"), return_metadata=True)
    assert metadata["format"] == "pt" and all(mx.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_is_an_oserror_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.stdout.count("OSError: ") == 2, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
