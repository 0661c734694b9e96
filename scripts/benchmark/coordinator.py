"""Runs a suite: starts a worker per contender and size, lets them step in turn, keeps limits."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from benchmark import worker
from benchmark.case import Case
from benchmark.contender import Finding
from benchmark.memory_use import resident_bytes
from benchmark.results_file import MEMORY_FIELDS, extra_peak
from benchmark.worker import Reply

# Spawned, not forked: the memory of the runner is not inherited, and CUDA works.
START_METHOD: Literal["spawn", "forkserver"] = "spawn"
# A process that starts imports its packages first.
_START_SECONDS = 300.0
_POLL_SECONDS = 0.1
# After these, larger sizes of the same contender are not tried.
_HOPELESS = ("out_of_memory", "timed_out")


@dataclass(frozen=True)
class Limits:
    """How much is measured, and what is too much.

    Attributes:
        warmup: steps before the timed ones; the first of them is checked, and its memory is that
            of the cell. Further ones are for contenders that the budget allows all timed steps.
        steps: timed steps of a cell.
        budget: seconds of timed steps per cell. A contender whose checked step took ``t`` seconds
            gets ``budget / t`` timed steps, at most ``steps``. Where not even one fits, the checked
            step is the measurement.
        turn: timed steps that a contender takes before the next one's turn. With one, it finds the
            caches full of what the others left there.
        time_limit: seconds that a step may take.
        memory_limit: bytes of resident memory that a worker may take; ``None``: any.
    """

    warmup: int = 2
    steps: int = 5
    budget: float = 120.0
    turn: int = 1
    time_limit: float = 1800.0
    memory_limit: int | None = None

    def timed_steps(self, first_seconds: float) -> int:
        """Timed steps for a contender whose first step took so long."""
        return min(self.steps, int(self.budget / max(first_seconds, 1e-9)))


@dataclass
class Cell:
    """The measurement of one contender at one size.

    Attributes:
        status: ``ok``, or ``failed_check``, ``unavailable``, ``out_of_memory``, ``timed_out``,
            ``error``, ``skipped``, with a ``reason``.
        seconds: wall time of every timed step.
        cpu_seconds: time of all threads of the process, for the same steps.
        warm: whether the timed steps came after a warm-up.
        findings: what the check of the first step found.
        facts: memory, as the worker reports it; of a check, the contender's label.
    """

    contender: str
    case: Case
    status: str = "ok"
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    warm: bool = True
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def fail(self, status: str, reason: str) -> None:
        """There is no measurement, and this is why."""
        self.status, self.reason = status, without_paths(reason)
        self.seconds, self.cpu_seconds = [], []

    def as_dict(self) -> dict[str, Any]:
        """The cell in the results file; times in seconds, memory in bytes."""
        times = sorted(self.seconds)
        tokens = self.facts.get("step_tokens", self.case.batch * self.case.length)
        median = statistics.median(times) if times else None
        return {
            "contender": self.contender,
            "length": self.case.length,
            "batch": self.case.batch,
            "depth": self.case.depth,
            "status": self.status,
            "reason": self.reason,
            "median_s": median,
            "fastest_s": times[0] if times else None,
            "slowest_s": times[-1] if times else None,
            "tokens_per_s": tokens / median if median else None,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "warm": self.warm,
            **{name: self.facts.get(name) for name in MEMORY_FIELDS},
            "findings": [asdict(finding) for finding in self.findings],
        }


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part: results are published."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\",:;()]+/)+", "", text)


class _Gone(Exception):
    """A worker ended, or was ended; the arguments are a status and a reason."""


class _Worker:
    """A worker process and the conversation with it."""

    def __init__(
        self,
        serve: Callable[..., None],
        suite: str,
        name: str,
        case: Case,
        limits: Limits,
    ) -> None:
        # Declared: the type of a context depends on the name of its start method.
        context: Any = multiprocessing.get_context(START_METHOD)
        self._limits = limits
        self._connection, theirs = context.Pipe()
        arguments = (theirs, suite, name, case)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: str) -> None:
        """Tell the worker something; if it is gone, the next :meth:`receive` says so."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, *expected: str) -> Reply:
        """The next reply, which must be one of these kinds.

        Raises:
            _Gone: another reply, none in time, too much memory, or the process died.
        """
        seconds = self._limits.time_limit
        if "stepped" not in expected:
            seconds += _START_SECONDS
        deadline = time.monotonic() + seconds
        while not self._connection.poll(_POLL_SECONDS):
            limit, used = self._limits.memory_limit, resident_bytes(str(self._process.pid))
            if limit is not None and used is not None and used > limit:
                self.end()
                raise _Gone("out_of_memory", f"took more than {limit / 2**30:.1f} GiB")
            if time.monotonic() > deadline:
                self.end()
                raise _Gone("timed_out", f"took more than {seconds:.0f} s")
        try:
            reply: Reply = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            if code == -9:
                raise _Gone("out_of_memory", "killed by the system") from None
            raise _Gone("error", f"the process ended with code {code}") from None
        if reply.kind not in expected:
            self.end()
            raise _Gone(reply.kind, reply.reason)
        return reply

    def end(self) -> None:
        """Make sure that the process is gone."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()


Progress = Callable[[str], None]


def check_contenders(
    suite: str, names: Sequence[str], case: Case, limits: Limits, progress: Progress
) -> dict[str, Cell]:
    """Check every contender at a short length; a cell of status ``ok`` may be timed."""
    results: dict[str, Cell] = {}
    for name in names:
        cell = results[name] = Cell(name, case)
        process = _Worker(worker.serve_check, suite, name, case, limits)
        try:
            reply = process.receive("checked")
            cell.findings, cell.facts = reply.findings, reply.facts
            _judge(cell)
        except _Gone as gone:
            cell.fail(*gone.args)
        finally:
            process.end()
        progress(f"check {name}: {cell.status} {cell.reason}".rstrip())
    return results


def _judge(cell: Cell) -> None:
    failed = [f for f in cell.findings if f.required and not f.passed]
    if failed:
        status = "unavailable" if failed[0].name == "available" else "failed_check"
        prefix = "" if status == "unavailable" else f"{failed[0].name}: "
        cell.fail(status, prefix + failed[0].detail)


def run_suite(
    suite: str,
    names: Sequence[str],
    cases: Sequence[Case],
    limits: Limits,
    *,
    progress: Progress = print,
    on_cells: Callable[[dict[str, Cell], list[Cell]], None] | None = None,
) -> tuple[dict[str, Cell], list[Cell]]:
    """Check all contenders, then measure those that passed, size by size.

    Args:
        suite: one of ``SUITES``.
        names: contenders, in the order in which they take turns.
        cases: sizes, the smaller ones first.
        limits: see there.
        progress: receives lines about what happens.
        on_cells: receives checks and cells after every size.

    Returns:
        The checks by contender, and the cells.
    """
    checks = check_contenders(suite, names, cases[0], limits, progress)
    hopeless = {
        name: (cell.status, cell.reason) for name, cell in checks.items() if cell.status != "ok"
    }
    cells: list[Cell] = []
    for case in cases:
        fresh = _run_size(suite, names, case, limits, hopeless, progress)
        cells += fresh
        for cell in fresh:
            if cell.status in _HOPELESS:
                size = f"{case.length} tokens, {case.depth} layers"
                text = f"{cell.status.replace('_', ' ')} at {size}"
                hopeless.setdefault(cell.contender, ("skipped", text))
        if on_cells is not None:
            on_cells(checks, cells)
    return checks, cells


def _run_size(
    suite: str,
    names: Sequence[str],
    case: Case,
    limits: Limits,
    hopeless: dict[str, tuple[str, str]],
    progress: Progress,
) -> list[Cell]:
    """All contenders at one size, in turns."""
    cells = {name: Cell(name, replace(case)) for name in names}
    workers: dict[str, _Worker] = {}
    remaining: dict[str, int] = {}

    def attempt(name: str, action: Callable[[Cell, _Worker], None]) -> None:
        cell = cells[name]
        try:
            action(cell, workers[name])
        except _Gone as gone:
            cell.fail(*gone.args)
        if cell.status != "ok":
            workers.pop(name).end()
            remaining.pop(name, None)
            progress(f"{_where(cell)}: {cell.status}, {cell.reason}")

    def first_step(cell: Cell, process: _Worker) -> None:
        cell.facts.update(process.receive("built").facts)
        process.send("step")
        reply = process.receive("stepped")
        cell.findings = reply.findings
        cell.facts.update((k, v) for k, v in reply.facts.items() if k.endswith("_bytes"))
        _judge(cell)
        seconds = reply.facts["seconds"]
        remaining[cell.contender] = limits.timed_steps(seconds)
        progress(f"{_where(cell)}: first step {seconds:.3g} s")
        if remaining[cell.contender] == 0 or limits.warmup == 0:
            cell.seconds, cell.cpu_seconds = [seconds], [reply.facts["cpu_seconds"]]
            cell.warm = False
            remaining[cell.contender] = max(0, remaining[cell.contender] - 1)

    def step(cell: Cell, process: _Worker) -> None:
        process.send("step")
        facts = process.receive("stepped").facts
        cell.seconds.append(facts["seconds"])
        cell.cpu_seconds.append(facts["cpu_seconds"])

    def warm_up(cell: Cell, process: _Worker) -> None:
        process.send("step")
        process.receive("stepped")

    def finish(cell: Cell, process: _Worker) -> None:
        process.send("finish")
        cell.facts.update(process.receive("finished").facts)

    try:
        for name in names:
            if name in hopeless:
                cells[name].fail(*hopeless[name])
                continue
            workers[name] = _Worker(worker.serve_steps, suite, name, case, limits)
            attempt(name, first_step)
        for _ in range(limits.warmup - 1):
            for name in [name for name, count in remaining.items() if count == limits.steps]:
                attempt(name, warm_up)
        while any(remaining.values()):
            for name in [name for name, count in remaining.items() if count > 0]:
                for _ in range(min(limits.turn, remaining[name])):
                    if name in workers:
                        remaining[name] -= 1
                        attempt(name, step)
        for name in [*workers]:
            attempt(name, finish)
            if cells[name].status == "ok":
                progress(f"{_where(cells[name])}: {_summary(cells[name])}")
    finally:
        for process in workers.values():
            process.end()
    return [*cells.values()]


def _where(cell: Cell) -> str:
    return f"{cell.contender}, {cell.case.length} tokens, {cell.case.depth} layers"


def _summary(cell: Cell) -> str:
    result = cell.as_dict()
    memory = extra_peak(result) or 0
    return f"{result['median_s']:.4g} s a step, {memory / 2**20:.0f} MiB extra"
