"""What every test gets: MLX on its fast BLAS, a known seed, and a cache folder of its own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmxlab  # noqa: F401  # before any test imports mlx.core


@pytest.fixture(autouse=True)
def seeded() -> None:
    """pytest-randomly seeds Python and numpy; this seeds MLX."""
    import mlx.core as mx

    mx.random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is read from or left in the user's ~/.cache."""
    folder = tmp_path_factory.mktemp("cache")
    # But for the sandbox's interpreter: compiling it takes longer than most tests.
    kept = Path(tempfile.gettempdir()) / f"lmxlab-tests-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    (folder / "lmxlab").mkdir()
    (folder / "lmxlab" / "sandbox").symlink_to(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def cpu_forms_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test models are too small for the CPU forms of the kernels to pay, but it is those that must be tested."""
    from lmxlab.core import kernels

    monkeypatch.setattr(kernels.switch, "FEWEST_ELEMENTS", 0)
