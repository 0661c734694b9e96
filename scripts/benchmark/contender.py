"""What takes part in a benchmark: something that can be checked, built and stepped."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from benchmark.case import Case

# Length of the sequences on which properties are checked before anything is timed: several chunks,
# so that hashing, sorting and look-back all take part.
CHECK_LENGTH = 512
# Outputs that move by more were changed, not rounded.
_CAUSAL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was looked at.
        passed: whether it holds.
        detail: what was seen, in words.
        required: whether a contender that fails it must not be timed; other findings are reported.
    """

    name: str
    passed: bool
    detail: str
    required: bool = True


class Workload(ABC):
    """A contender at one case, ready to be stepped."""

    @abstractmethod
    def step(self) -> None:
        """Do once what is measured."""

    @abstractmethod
    def findings(self) -> list[Finding]:
        """Judge what the last step left behind: results and gradients."""

    @abstractmethod
    def parameters(self) -> Iterable[Tensor]:
        """What the step computes gradients of and keeps them for."""

    def tokens(self, case: Case) -> int:
        """Tokens that a step processes."""
        return case.batch * case.length


class Contender(ABC):
    """One implementation that takes part.

    Attributes:
        name: its name on the command line and in the results.
        label: its name in figures.
        package: the distribution that it needs beyond the package's own dependencies, if any.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    package: ClassVar[str | None] = None

    def unavailable(self, case: Case) -> str | None:
        """Why this contender cannot run the case (a phrase), or ``None`` if it can."""
        if self.package is not None:
            module = self.package.partition("==")[0].replace("-", "_")
            if importlib.util.find_spec(module) is None:
                return f"needs `pip install {self.package}`"
        if case.device_type == "cuda" and not torch.cuda.is_available():
            return "needs a CUDA device"
        return None

    def estimate(self, case: Case) -> int | None:
        """Bytes above the built model that a step is said to need; ``None``: nobody says."""
        return None

    def check(self, case: Case) -> list[Finding]:
        """Properties at a short length, in a process of their own; nothing is timed before."""
        short = replace(case, length=CHECK_LENGTH, depth=min(case.depth, 2), batch=1)
        reason = self.unavailable(short)
        if reason is not None:
            return [Finding("available", False, reason)]
        workload = self.build(short)
        workload.step()
        return [*workload.findings(), *self.properties(short)]

    def properties(self, case: Case) -> list[Finding]:
        """What is checked besides the results of a step."""
        return []

    @abstractmethod
    def build(self, case: Case) -> Workload:
        """Weights and inputs."""


def import_contender(path: str) -> Contender:
    """The contender at ``module:Class``.

    Raises:
        ValueError: there is no such module or class, or it is no contender.
    """
    module, _, name = path.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it needs is not
        raise ValueError(f"a contender must be a name or module:Class, got {path!r}") from error
    if not (isinstance(kind, type) and issubclass(kind, Contender)):
        raise ValueError(f"{path!r} must be a Contender, got {kind!r}")
    return kind()


def check_finite(name: str, tensors: Iterable[Tensor | None]) -> Finding:
    """Whether every tensor is there and finite."""
    missing = infinite = count = 0
    for tensor in tensors:
        count += 1
        if tensor is None:
            missing += 1
        elif not bool(torch.isfinite(tensor).all()):
            infinite += 1
    if count == 0:
        return Finding(name, False, "there are none")
    if missing or infinite:
        return Finding(name, False, f"of {count}, {missing} missing and {infinite} not finite")
    return Finding(name, True, f"all {count} present and finite")


def check_causal(
    outputs: Sequence[Tensor], others: Sequence[int], tokens: str, required: bool
) -> Finding:
    """Whether outputs ``[.., n, ..]`` before edited tokens are what they were before the edit.

    Args:
        outputs: before and after the edit, those before the edited tokens.
        others: dimensions that are not positions.
        tokens: what was edited.
        required: whether the contender claims it.
    """
    before, after = (x.float() for x in outputs)
    seen = (before - after).abs().amax(dim=tuple(others)) > _CAUSAL_TOLERANCE
    return Finding(
        "strictly causal",
        not bool(seen.any()),
        f"editing {tokens} changed {int(seen.sum())} of the {seen.numel()} outputs before them",
        required=required,
    )


def check_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> Finding:
    """Whether the largest difference, relative to the largest expected value, is tolerable."""
    scale = float(expected.abs().max()) or 1.0
    error = float((actual.to(expected.dtype) - expected).abs().max()) / scale
    return Finding(name, error <= tolerance, f"off by {error:.1e}, allowed {tolerance:.0e}")
