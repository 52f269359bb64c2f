"""Fields of configs: from plain types and back, and what a value may be."""

import dataclasses
import math
from typing import Any

from lmxlab.errors import UnknownNameError, UserError

MAY_BE_ZERO = ("rope_dim",)  # 0 is something else than not given


class Derived(int):
    """A head_dim that was computed, not given: `dataclasses.replace(config, d_model=...)` computes it anew."""


def known(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if key not in names:
            raise UnknownNameError("config key", key, names)
    return data


def plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {name: plain(item) for name, item in items if item is not None and not isinstance(item, Derived)}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables and lists as one table.

    >>> flat({"a": {"b": 1}, "c": [2, {"d": 3}]})
    {'a.b': 1, 'c.0': 2, 'c.1.d': 3}
    """
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {prefix: value}
    inner = (flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items())
    return {key: item for table in inner for key, item in table.items()}


def check_types(config: Any) -> None:
    """Numbers from a config file may be of the wrong type: caught here, not in the middle of a forward pass."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        optional = "None" in str(f.type) or f.name == "head_dim"
        if value is None and optional:
            continue
        if "int" in str(f.type):
            check(isinstance(value, int) and not isinstance(value, bool), f.name, value, "an integer")
            if optional and f.name not in MAY_BE_ZERO:
                check_positive(config, f.name)
        elif "float" in str(f.type):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            check(number and math.isfinite(value), f.name, value, "a finite number")
        elif "bool" in str(f.type):
            check(isinstance(value, bool), f.name, value, "true or false")
        elif f.type is str:
            check(isinstance(value, str), f.name, value, "a name")


def check_positive(config: Any, name: str) -> None:
    check(getattr(config, name) > 0, name, getattr(config, name), "at least 1")


def check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value!r}; it must be {allowed}")
