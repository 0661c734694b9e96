"""The process of one contender: it builds, and takes a step whenever it is told to.

Every contender runs at every size in a process of its own, so that its peak memory is its own. The
runner tells the processes of one size to step in turn, so that whatever else the machine does falls
on all contenders alike.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from benchmark.case import Case
from benchmark.contender import CHECK_LENGTH, Contender, Finding, Workload
from benchmark.contenders import find_contender
from benchmark.memory_use import PeakMemory, return_freed_memory


@dataclass(frozen=True)
class Reply:
    """What a worker says.

    Attributes:
        kind: ``checked``, ``built``, ``stepped``, ``finished``; ``unavailable``, ``out_of_memory``
            or ``error``, after which the worker is gone.
        reason: why it is gone.
        findings: results of checks.
        facts: what else was measured.
    """

    kind: str
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def serve_check(connection: Connection, suite: str, name: str, case: Case) -> None:
    """Process: check one contender and say what was found."""
    with _Failures(connection):
        _prepare(case)
        contender = find_contender(suite, name)
        facts = {"label": contender.label}
        connection.send(Reply("checked", findings=contender.check(case), facts=facts))


def serve_steps(connection: Connection, suite: str, name: str, case: Case) -> None:
    """Process: build one contender, then step at every message ``step`` until another comes."""
    with _Failures(connection):
        _prepare(case)
        contender = find_contender(suite, name)
        reason = contender.unavailable(case)
        if reason is not None:
            connection.send(Reply("unavailable", reason))
            return
        _load_libraries(contender, case)
        workload = contender.build(case)
        device = torch.device(case.device)
        return_freed_memory(eager=True)
        peak = PeakMemory(device)
        facts = {
            "parameter_bytes": _bytes(workload.parameters()),
            "before_bytes": peak.before,
            "cuda_before_bytes": peak.cuda_before,
            "estimated_bytes": contender.estimate(case),
            "step_tokens": workload.tokens(case),
        }
        connection.send(Reply("built", facts=facts))
        steps = 0
        while connection.recv() == "step":
            facts = _timed_step(workload, device, settle=steps > 0)
            findings = []
            if steps == 0:
                facts |= {
                    "extra_peak_bytes": peak.extra(),
                    "cuda_extra_peak_bytes": peak.cuda_extra(),
                    "gradient_bytes": _bytes(_gradients(workload)),
                }
                findings = workload.findings()
                return_freed_memory(eager=False)
                peak.restart()
            connection.send(Reply("stepped", findings=findings, facts=facts))
            steps += 1
        resident = peak.extra() if steps > 1 else None
        connection.send(Reply("finished", facts={"resident_extra_peak_bytes": resident}))


def _prepare(case: Case) -> None:
    return_freed_memory(eager=True)
    torch.set_num_threads(case.threads)
    torch.manual_seed(case.seed)


def _load_libraries(contender: Contender, case: Case) -> None:
    """A small step, so that what libraries load and set up once is not counted as the model's."""
    small = replace(case, length=CHECK_LENGTH, depth=1, batch=1)
    if contender.unavailable(small) is None:
        contender.build(small).step()


def _timed_step(workload: Workload, device: torch.device, settle: bool) -> dict[str, Any]:
    """One step; seconds on the clock and of all threads of this process.

    On a GPU the step before it, untimed, brings back the memory that the allocator gave up when the
    turn went to another contender.
    """
    if device.type == "cuda" and settle:
        workload.step()
    _synchronize(device)
    start, cpu_start = time.perf_counter(), time.process_time()
    workload.step()
    _synchronize(device)
    facts = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return facts


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _gradients(workload: Workload) -> list[Tensor]:
    return [p.grad for p in workload.parameters() if p.grad is not None]


class _Failures:
    """Tells the runner about an exception, which then ends the process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> _Failures:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None:
            return False
        memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        )
        if not memory and not isinstance(error, EOFError):
            traceback.print_exception(error)
        first_line = (str(error).strip().splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first_line}"
        with contextlib.suppress(OSError):  # the runner may be gone too
            self._connection.send(Reply("out_of_memory" if memory else "error", reason))
        return True
