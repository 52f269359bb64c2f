"""What runs inside the confined interpreter, in front of the program: it loads it and calls its functions.

One line of JSON comes in on descriptor 0, one goes out on descriptor 1. Nothing here is trusted by the outside: the
program shares this interpreter, so it can read and rewrite all of it. That gains it nothing, for no expected value
ever comes here, and all that leaves are values, which are compared elsewhere.

`encode` and `decode` are also what the outside uses. This file is read as text by interpreters without lmxlab.
"""

import builtins
import io
import json
import math
import os
import random
import sys
from collections.abc import Callable
from typing import Any

DEEPEST = 64
MOST_COLLISIONS = 1000
KINDS: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def encode(value: Any, depth: int = 0) -> Any:
    """Plain data as JSON that keeps Python's types; subclasses become the plain type. Raises TypeError for the rest.

    >>> encode((1, {"a": {2.5}}))
    {'tuple': [1, {'dict': [['a', {'set': [2.5]}]]}]}
    """
    if depth > DEEPEST:
        raise TypeError("a value nested more than 64 deep")
    if value is None or isinstance(value, bool):
        return value
    plain: Any
    for plain in (int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).decode("latin-1")}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]}
    for name, collection in KINDS.items():
        if isinstance(value, collection):
            return {name: [encode(item, depth + 1) for item in value]}
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        return encode(value.tolist(), depth + 1)
    raise TypeError(f"a {type(value).__name__}, which is no plain data")


def decode(data: Any, depth: int = 0) -> Any:
    """What `encode` was given. Raises ValueError for anything else.

    >>> decode(encode(({1: b"a"}, frozenset({1j}))))
    ({1: b'a'}, frozenset({1j}))
    """
    if depth > DEEPEST:
        raise ValueError("a value nested more than 64 deep")
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((kind, content),) = data.items()
        if kind == "dict":
            pairs = [(decode(key, depth + 1), decode(item, depth + 1)) for key, item in content]
            return dict(_spread(pairs, [key for key, _ in pairs]))
        if kind == "bytes":
            return content.encode("latin-1")
        if kind == "complex":
            real, imaginary = content
            return complex(float(real), float(imaginary))
        items = [decode(item, depth + 1) for item in content]
        return KINDS[kind](items if kind == "tuple" else _spread(items, items))
    except (KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise ValueError("not an encoded value") from error


def _spread(items: list[Any], keys: list[Any]) -> list[Any]:
    """The items; ValueError for keys made to share their hashes, of which a set takes quadratic time out here."""
    if len(keys) - len({hash(key) for key in keys}) > MOST_COLLISIONS:
        raise ValueError("a set or dict whose items share their hashes")
    return items


def same(expected: Any, got: Any, tolerance: float = 0.0) -> bool:
    """Equality of plain data, types included, but for 1 == 1.0; NaN is equal to NaN.

    Floats may differ by `tolerance`, relative, and absolute near 0.

    >>> same([1, 2.0], [1.0, 2.0 + 1e-12], tolerance=1e-9), same((1,), [1])
    (True, False)
    """
    if isinstance(expected, float) or isinstance(got, float):
        if not (isinstance(expected, int | float) and isinstance(got, int | float)):
            return bool(expected == got)
        try:
            if math.isnan(expected) or math.isnan(got):
                return math.isnan(expected) and math.isnan(got)
            return expected == got or math.isclose(expected, got, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an integer larger than any float
            return False
    if isinstance(expected, complex) and isinstance(got, complex):
        return same(expected.real, got.real, tolerance) and same(expected.imag, got.imag, tolerance)
    if isinstance(expected, list | tuple):
        return (
            type(expected) is type(got)
            and len(expected) == len(got)
            and all(same(a, b, tolerance) for a, b in zip(expected, got, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and expected.keys() == got.keys()
            and all(same(value, got[key], tolerance) for key, value in expected.items())
        )
    return type(expected) is type(got) and bool(expected == got)


class Guest:
    """Answers one request after the other: load a program, call a function of it, or run a test that calls one."""

    def __init__(self, read: Callable[[], str], write: Callable[[str], Any]):
        self.read, self.write = read, write
        self.names: dict[str, Any] = {}
        self.raised: Exception | None = None  # by the candidate, as a test saw it

    def serve(self) -> None:
        while line := self.read():
            request = json.loads(line)
            try:
                reply = getattr(self, request.pop("do"))(**request)
            except BaseException as error:  # SystemExit and KeyboardInterrupt end no verdict
                reply = self.failure(error)
            self.write(json.dumps(reply))

    def failure(self, error: BaseException) -> dict[str, Any]:
        try:
            message = str(error)[:500]
        except BaseException:
            message = ""
        return {"error": type(error).__name__, "message": message, "called": error is self.raised}

    def load(self, source: str, name: str | None = None) -> Any:
        """Runs the program; `name` is what must then exist."""
        random.seed(0)  # the same numbers for every program
        self.names = {"__name__": "__main__", "__builtins__": builtins}
        exec(compile(source, "<program>", "exec"), self.names)
        if name is not None and not callable(self.names.get(name)):
            raise NameError(f"the program defines no function {name!r}")
        return {"value": None}

    def call(self, name: str, args: list[Any], kwargs: Any = None) -> Any:
        """One call: its value."""
        return {"value": encode(self.names[name](*map(decode, args), **(decode(kwargs) if kwargs else {})))}

    def check(self, setup: str, test: str, name: str) -> Any:
        """Runs `test`, which defines check(candidate), where every call of the candidate is made by the outside."""
        random.seed(0)
        names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        exec(compile(setup, "<setup>", "exec"), names)
        names[name] = self.candidate
        exec(compile(test, "<test>", "exec"), names)
        names["check"](self.candidate)
        return {"done": True}

    def candidate(self, *args: Any, **kwargs: Any) -> Any:
        """Asks the outside for the value; an error of the program is raised again here."""
        self.write(json.dumps({"call": [encode(arg) for arg in args], "kwargs": encode(kwargs)}))
        reply = json.loads(self.read())
        if "error" not in reply:
            return decode(reply["value"])
        kind = getattr(builtins, str(reply["error"]), RuntimeError)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        try:
            self.raised = kind(reply["message"])
        except TypeError:  # UnicodeDecodeError and its like want more
            self.raised = RuntimeError(reply["message"])
        raise self.raised


def main() -> None:
    """Reads from descriptor 0, answers on 1; what the program prints goes to 2."""
    requests = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # until the end
    sys.stdin, sys.stdout = io.StringIO(), sys.stderr

    def write(text: str) -> None:
        sys.stderr.flush()
        data = text.encode("utf-8", "replace") + b"\n"
        while data:
            data = data[os.write(1, data) :]

    Guest(requests.readline, write).serve()
