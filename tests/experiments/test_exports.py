"""`lmxlab.experiments` offers its public names and loads what they need only when they are used."""

import subprocess
import sys

import pytest

import lmxlab.experiments


def test_every_public_name_can_be_imported_from_the_package():
    for name in lmxlab.experiments.__all__:
        assert getattr(lmxlab.experiments, name).__name__ == name
    assert set(lmxlab.experiments.__all__) <= set(dir(lmxlab.experiments))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lmxlab.experiments.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import lmxlab.experiments", ["scipy", "mlx.nn", "numpy", "filelock"]),
        ("from lmxlab.experiments import ExperimentLog, ExperimentRunner", ["scipy", "mlx.nn", "numpy", "filelock"]),
        ("from lmxlab.experiments import compute_statistics, estimate_flops_per_token", ["scipy", "mlx.nn"]),
    ],
)
def test_heavy_libraries_wait_until_they_are_used(statement, heavy):
    code = f"{statement}; import sys; loaded = set({heavy}) & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
