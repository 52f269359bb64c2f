"""Experiments: the ledger, statistics, FLOPs and profiling. Names are imported when first asked for (PEP 562)."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmxlab.experiments.analysis import (
        cohens_d,
        compare_experiments,
        compute_statistics,
        confidence_interval,
        simplicity_score,
    )
    from lmxlab.experiments.flops import estimate_flops_per_step, estimate_flops_per_token
    from lmxlab.experiments.profiling import (
        benchmark_fn,
        count_parameters_by_module,
        memory_estimate,
        profile_forward,
        profile_generation,
    )
    from lmxlab.experiments.runner import ExperimentConfig, ExperimentRunner
    from lmxlab.experiments.tracking import ExperimentLog, LogEntry

__all__ = [
    "ExperimentConfig",
    "ExperimentLog",
    "ExperimentRunner",
    "LogEntry",
    "benchmark_fn",
    "cohens_d",
    "compare_experiments",
    "compute_statistics",
    "confidence_interval",
    "count_parameters_by_module",
    "estimate_flops_per_step",
    "estimate_flops_per_token",
    "memory_estimate",
    "profile_forward",
    "profile_generation",
    "simplicity_score",
]

_HOMES = {
    **dict.fromkeys(["ExperimentConfig", "ExperimentRunner"], "runner"),
    **dict.fromkeys(["ExperimentLog", "LogEntry"], "tracking"),
    **dict.fromkeys(["estimate_flops_per_step", "estimate_flops_per_token"], "flops"),
    **dict.fromkeys(["cohens_d", "compare_experiments", "compute_statistics"], "analysis"),
    **dict.fromkeys(["confidence_interval", "simplicity_score"], "analysis"),
    **dict.fromkeys(["benchmark_fn", "count_parameters_by_module", "memory_estimate"], "profiling"),
    **dict.fromkeys(["profile_forward", "profile_generation"], "profiling"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
