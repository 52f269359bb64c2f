"""What `lmxlab doctor` is told."""

import pytest

from lmxlab import doctor
from lmxlab.blas import Blas

FAST = Blas("OpenBLAS 0.3.33 (Haswell)", "/lib/libopenblas.so.0", threads=4)
PLENTY = 64 * 2**30


def advice(blas=FAST, gflops=200.0, cores=4, compile_problem=None, available=PLENTY):
    return doctor._advice(blas, gflops, cores, compile_problem, available)


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name == "nvidia-smi" else f"/usr/bin/{name}")
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 0)


def test_a_good_machine_gets_no_advice():
    assert advice() == []


def test_advice_names_the_cause_and_the_remedy():
    (line,) = advice(
        blas=Blas("the reference BLAS", problem="no fast BLAS found: pip install ngsolve-openblas"), gflops=4
    )
    assert "tens of times slower" in line
    assert "pip install ngsolve-openblas" in line
    assert "4 GFLOP/s" in advice(gflops=4)[0]
    assert "uses 1 of 4 cores" in advice(blas=Blas("OpenBLAS", "x", threads=1))[0]
    assert "apt-get install g++" in advice(compile_problem="no g++ found: apt-get install g++")[0]
    assert "0.5 GiB" in advice(available=2**29)[0]


def test_prescribed_kernels_are_told(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "HASWELL")
    assert "unset it" in advice()[0] and "OPENBLAS_CORETYPE=HASWELL" in advice()[0]


def test_little_space_for_compiled_kernels_is_told(monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 2**80)
    assert "set TMPDIR" in advice()[0]


def test_an_unused_gpu_is_told(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(doctor.host, "system", lambda: "Linux")
    assert "lmxlab[cuda13]" in advice()[0]


def test_the_report_agrees_with_the_machine():
    report = doctor.examine()
    assert report.memory_available_bytes < report.memory_total_bytes
    assert report.device in ("cpu", "gpu")
    assert report.gflops > 0
    assert set(doctor.PACKAGES) | {"python"} == set(report.versions)
    assert {"hf", "tiktoken"} <= {extra.name for extra in report.extras}


def test_an_extra_is_present_when_all_its_packages_are(monkeypatch):
    needs = ["numpy>=2", "here>=1; extra == 'a'", "here; extra == 'b'", "gone[x]>=2; extra == 'b'"]
    needs.append("here; extra == 'c' and sys_platform == 'plan9'")
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "metadata",
        lambda name: type("M", (), {"get_all": lambda self, key: ["b", "a", "c"]})(),
    )
    monkeypatch.setattr(doctor, "_version", lambda name: "1.5" if name == "here" else None)
    assert doctor.extras() == (doctor.Extra("a", ()), doctor.Extra("b", ("gone[x]>=2",)), doctor.Extra("c", ()))
    assert [extra.present for extra in doctor.extras()] == [True, False, True]
