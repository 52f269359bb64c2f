"""`lmxlab doctor`: what this machine can do, and what would make it faster."""

import dataclasses

from tyro.extras import SubcommandApp

from lmxlab.cli.options import Json
from lmxlab.cli.render import note, out, out_json
from lmxlab.doctor import Report, examine


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="doctor")(doctor)


def doctor(*, json: Json = False) -> None:
    """What this machine can do, and what would make it faster.

    Example: lmxlab doctor
    """
    note("measuring ...")
    report = examine()
    if json:
        out_json(dataclasses.asdict(report))
    else:
        _print(report)


def _print(report: Report) -> None:
    gib = 2**30
    blas = report.blas
    rows = {
        "system": report.system,
        "device": f"{report.device}: {report.device_name}, {report.cores} physical cores",
        "memory": f"{report.memory_available_bytes / gib:.1f} of {report.memory_total_bytes / gib:.1f} GiB free",
        "BLAS": blas.name + (f", {blas.threads} threads" if blas.threads else ""),
        "matmul": f"{report.gflops:.0f} GFLOP/s (float32, 1024 x 1024, measured)",
        "compiler": report.compiler or "no g++",
        "mx.compile": "works" if report.compile_problem is None else f"does not work: {report.compile_problem}",
        "temporary": report.temporary_folder,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    for name, value in rows.items():
        out(f"{name:<11} {value}")
    for extra in report.extras:
        lacks = f"not installed: {', '.join(extra.missing)} (pip install 'lmxlab[{extra.name}]')"
        out(f"{'extra':<11} {extra.name}: {'present' if extra.present else lacks}")
    if report.advice:
        out("\nWhat would make this machine faster:")
        for line in report.advice:
            out(f"  - {line}")
    else:
        out("\nNothing is known that would make this machine faster.")
