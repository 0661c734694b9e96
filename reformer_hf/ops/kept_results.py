"""Results that a recomputation finds instead of computing them again.

A function that is called twice, in the forward pass and again for its gradients, may contain
operations whose results are small for what they cost. Within :meth:`KeptResults.record` these are
kept, and within :meth:`KeptResults.replay` they are handed out in the same order. Elsewhere nothing
happens. This is selective activation recomputation (arXiv:2205.05198, section 5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import islice

import torch
from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]

_active: ContextVar[KeptResults | None] = ContextVar("kept_results", default=None)


class KeptResults:
    """The results that operations keep in one call of a function.

    Example:
        >>> import torch
        >>> results, x = KeptResults(), torch.ones(2)
        >>> with results.record() as kept:
        ...     first = keep_results(lambda: (x + 1.0,))
        >>> with results.replay(kept):
        ...     again = keep_results(lambda: (x / 0.0,))
        >>> torch.equal(first[0], again[0])
        True
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._counts: list[int] = []
        self._coming: Iterator[tuple[Tensor, ...]] | None = None

    @contextlib.contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Keep the results of what is called within, in the list."""
        self._kept, self._counts = [], []
        with self._activate(None):
            yield self._kept
        self._kept = []

    @contextlib.contextmanager
    def replay(self, kept: Sequence[Tensor]) -> Iterator[None]:
        """Hand out what was kept, to the same operations in the same order.

        Args:
            kept: the tensors of the list, which need not have stayed there in between.
        """
        left = iter(kept)
        with self._activate(tuple(islice(left, count)) for count in self._counts):
            yield

    @contextlib.contextmanager
    def _activate(self, coming: Iterator[tuple[Tensor, ...]] | None) -> Iterator[None]:
        self._coming = coming
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)
            self._coming = None

    def _of(self, compute: Compute, narrow: bool) -> tuple[Tensor, ...]:
        if self._coming is not None:
            return tuple(_cast(x, torch.int32, torch.int64, narrow) for x in next(self._coming))
        results = compute()
        self._kept += (_cast(x, torch.int64, torch.int32, narrow) for x in results)
        self._counts.append(len(results))
        return results


def _cast(x: Tensor, source: torch.dtype, target: torch.dtype, wanted: bool) -> Tensor:
    return x.to(target) if wanted and x.dtype == source else x


def _current() -> KeptResults | None:
    # What is compiled is not called a second time by the reversible engine.
    return None if torch.compiler.is_compiling() else _active.get()


def replaying() -> bool:
    """Whether kept results are being handed out."""
    results = _current()
    return results is not None and results._coming is not None


def keep_results(compute: Compute, *, narrow: bool = False) -> tuple[Tensor, ...]:
    """``compute()``, kept or handed out. No gradients pass through what is handed out.

    Args:
        compute: what gives the results.
        narrow: int64 results are kept as int32, in half the memory, and handed out as int64. Their
            values must fit, and no result may be int32 itself.
    """
    results = _current()
    return compute() if results is None else results._of(compute, narrow)
