"""`lmxlab mup-check`: does an architecture keep the size of its activations when it gets wider, under muP?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from lmxlab.cli.options import Json, option
from lmxlab.cli.render import note, number, out, out_json, table
from lmxlab.models.families import FAMILIES, resolve
from lmxlab.training.coordinate_check import ALLOWED_CHANGE, CoordinateCheck, coordinate_check, curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARAMETRISATIONS = {"muP": True, "standard": False}


def register(app: SubcommandApp, arguments: list[str]) -> None:
    app.command(name="mup-check")(mup_check)


def mup_check(
    arch: Annotated[Positional[str], option("An architecture (its small version) or a preset.", "ARCH")] = "gpt",
    /,
    *,
    widths: Annotated[tuple[int, ...], option("d_model of the models; the least one is muP's base.")] = (
        64,
        128,
        256,
        512,
    ),
    steps: Annotated[int, option("Training steps, all on one batch.")] = 10,
    learning_rate: Annotated[float, option("Of AdamW; a large one blurs the picture.")] = 2e-3,
    seeds: Annotated[int, option("Models of each width; what is shown is their mean.")] = 2,
    picture: Annotated[Path, option("Where to draw it.", "PNG")] = Path("mup-check.png"),
    json: Json = False,
) -> None:
    """The coordinate check of muP: sizes of activations by width, under muP and in the standard parametrisation.

    Exit status 1 if an activation or the logits change by 20% or more under muP. How a learning rate is carried over
    from a narrow model to a wide one is told in docs/mup.md.

    Example: lmxlab mup-check llama --widths 64 128 256
    """
    config = FAMILIES[arch].tiny() if arch in FAMILIES else resolve(arch)
    checks = {}
    for name, mup in PARAMETRISATIONS.items():
        note(f"training {arch} at widths {', '.join(map(str, sorted(widths)))}: {name} ...")
        checks[name] = coordinate_check(config, widths, mup=mup, steps=steps, learning_rate=learning_rate, seeds=seeds)
    draw(checks, f"{arch}, after {steps} steps at learning rate {learning_rate:g}").savefig(picture)
    if json:
        out_json({name: _summary(check) for name, check in checks.items()} | {"picture": str(picture)})
    else:
        for name, check in checks.items():
            rows = [
                (place, *(number(rms, 3) for rms in last), f"{change:+.1%}")
                for place, _, last in curves(check)
                for change in [last[-1] / last[0] - 1]
            ]
            table((f"{name}: RMS", *map(str, check.widths), "change"), rows)
            out(verdict(name, check))
            out()
        out(f"picture: {picture}")
    if not checks["muP"].passed:
        raise SystemExit(1)


def verdict(name: str, check: CoordinateCheck) -> str:
    """One line: whether it passed, and where it is worst."""
    place, width, change = check.worst
    return (
        f"{name} {'passes' if check.passed else 'fails'}: {place} changes by {change:+.1%} from width "
        f"{check.widths[0]} to {width} (allowed: {ALLOWED_CHANGE:.0%})"
    )


def draw(checks: dict[str, CoordinateCheck], title: str) -> "Figure":
    """A panel for each parametrisation: RMS against width, dashed at initialisation, full after training."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(checks), sharey=True)
    for axes, (name, check) in zip(panels, checks.items(), strict=True):
        for i, (place, first, last) in enumerate(curves(check)):
            colour = "black" if place == "logits" else f"C{i % 10}"
            axes.plot(check.widths, first, color=colour, linestyle=":", linewidth=1)
            axes.plot(check.widths, last, color=colour, marker="o", markersize=4, label=place)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(check.widths, [str(width) for width in check.widths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="width (d_model)", title=f"{name}: {'passes' if check.passed else 'fails'}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("root mean square (dotted: before training)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def _summary(check: CoordinateCheck) -> dict[str, object]:
    place, width, change = check.worst
    return {
        "passed": check.passed,
        "worst": {"place": place, "width": width, "change": change},
        "widths": list(check.widths),
        "rms": {place: last.tolist() for place, _, last in curves(check)},
    }
