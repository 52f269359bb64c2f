"""Errors that are the user's to mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable

MAX_NAMES = 30  # that a message lists: of more, the nearest


class UserError(ValueError):
    """What was given, what is allowed, what to do: one line that a person can act on."""


class UnknownNameError(UserError, KeyError):
    """A name that is in no table; the message offers the nearest one."""

    __str__ = ValueError.__str__  # KeyError would print the message in quotes

    def __init__(self, kind: str, name: str, allowed: Iterable[str]):
        super().__init__(unknown_name(kind, name, allowed))


class MissingExtraError(UserError, ImportError):
    """A package that only some users need is not installed; the message says what to install."""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """The message for a name that is not in a table.

    >>> unknown_name("optimizer", "adamww", ["adamw", "lion"])
    "Unknown optimizer 'adamww'; did you mean 'adamw'? Available: ['adamw', 'lion']"
    """
    allowed = set(allowed)
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if len(names) > MAX_NAMES:
        names = sorted(difflib.get_close_matches(str(name), names, n=MAX_NAMES, cutoff=0.0))
        return f"Unknown {kind} {name!r}{hint} Available: {names} and {len(allowed) - len(names)} more"
    return f"Unknown {kind} {name!r}{hint} Available: {names}"


def some(names: Iterable[str]) -> str:
    """The first few names of many.

    >>> some(["c", "a", "b", "f", "e", "d"])
    'a, b, c, d, e and 1 more'
    """
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
