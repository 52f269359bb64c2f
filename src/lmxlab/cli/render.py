"""How numbers and tables look, for every command."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from lmxlab.files import to_json

MISSING = "-"


def out(text: str = "") -> None:
    """A line of the result, on stdout."""
    print(text)


def note(text: str) -> None:
    """A line about the progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def out_json(value: Any) -> None:
    """The result for machines: strict JSON, missing numbers as null."""
    print(to_json(value))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout; the first column is text, the others are numbers. Never cut when stdout is no terminal."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(header):
        drawn.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    console = Console(highlight=False)
    # A table that is cut loses numbers: let the terminal scroll or wrap instead.
    width = max(console.width, console.measure(drawn).maximum) if console.is_terminal else 400
    Console(highlight=False, width=width).print(drawn, crop=False, no_wrap=True)


def number(value: float | None, digits: int = 4) -> str:
    """Fixed digits, or "-" for a number that is missing.

    >>> number(1.23456), number(None), number(float("nan"))
    ('1.2346', '-', '-')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """Whole, with thousands set apart; "-" when it is missing.

    >>> count(803712), count(None)
    ('803,712', '-')
    """
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and a prefix.

    >>> scaled(1.5e12, "FLOP"), scaled(812_345), scaled(950, "tok/s")
    ('1.50 TFLOP', '812 k', '950 tok/s')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            shown = value / 10**power
            digits = 2 if shown < 10 else 1 if shown < 100 else 0
            return f"{shown:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """
    >>> duration(8.25), duration(83), duration(7300), duration(None)
    ('8.2 s', '1 min 23 s', '2 h 01 min', '-')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def p_value(p: float | None) -> str:
    """
    >>> p_value(0.03124), p_value(0.00002)
    ('0.0312', '< 0.001')
    """
    if p is None or not math.isfinite(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3g}"
