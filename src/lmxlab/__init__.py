"""A laboratory for language-model research on the machine you have, on MLX."""

import importlib
from typing import TYPE_CHECKING, Any

from lmxlab.blas import load_blas
from lmxlab.platform import keep_freed_memory

load_blas()  # before anything imports mlx.core, which binds its BLAS then
keep_freed_memory()

if TYPE_CHECKING:
    from lmxlab.core.config import BlockConfig, ModelConfig
    from lmxlab.models.base import LanguageModel
    from lmxlab.models.generate import generate, stream_generate
    from lmxlab.training.config import TrainConfig
    from lmxlab.training.trainer import Trainer

__all__ = [
    "BlockConfig",
    "LanguageModel",
    "ModelConfig",
    "TrainConfig",
    "Trainer",
    "__version__",
    "generate",
    "stream_generate",
]

# Imported when first asked for (PEP 562), so that `import lmxlab` takes milliseconds.
_HOMES = {
    "BlockConfig": "lmxlab.core.config",
    "LanguageModel": "lmxlab.models.base",
    "ModelConfig": "lmxlab.core.config",
    "TrainConfig": "lmxlab.training.config",
    "Trainer": "lmxlab.training.trainer",
    "generate": "lmxlab.models.generate",
    "stream_generate": "lmxlab.models.generate",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lmxlab")
        except PackageNotFoundError:  # run from a source tree that is not installed
            return "unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'lmxlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
