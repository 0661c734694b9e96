"""Results that a recomputation finds instead of computing them again.

A function that is called twice, in the forward pass and again for its gradients, may contain
operations whose results are small for what they cost. Within :meth:`Recall.record` these are noted,
and within :meth:`Recall.replay` they are handed out in the same order. Elsewhere nothing happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import islice

import torch
from torch import Tensor

Compute = Callable[[], tuple[Tensor, ...]]

_active: ContextVar[Recall | None] = ContextVar("recall", default=None)


class Recall:
    """The results of one call of a function.

    Example:
        >>> import torch
        >>> recall, x = Recall(), torch.ones(2)
        >>> with recall.record() as noted:
        ...     first = remember(lambda: (x + 1.0,))
        >>> with recall.replay(noted):
        ...     again = remember(lambda: (x / 0.0,))
        >>> torch.equal(first[0], again[0])
        True
    """

    def __init__(self) -> None:
        self._noted: list[Tensor] = []
        self._counts: list[int] = []
        self._coming: Iterator[tuple[Tensor, ...]] | None = None

    @contextlib.contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """Note the results of what is called within, in the list."""
        self._noted, self._counts = [], []
        with self._activate(None):
            yield self._noted
        self._noted = []

    @contextlib.contextmanager
    def replay(self, noted: Sequence[Tensor]) -> Iterator[None]:
        """Hand out what was noted, to the same operations in the same order.

        Args:
            noted: the tensors of the list, which need not have stayed there in between.
        """
        left = iter(noted)
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
        self._noted += (_cast(x, torch.int64, torch.int32, narrow) for x in results)
        self._counts.append(len(results))
        return results


def _cast(x: Tensor, source: torch.dtype, target: torch.dtype, wanted: bool) -> Tensor:
    return x.to(target) if wanted and x.dtype == source else x


def _current() -> Recall | None:
    # What is compiled is not called a second time by the reversible engine.
    return None if torch.compiler.is_compiling() else _active.get()


def recalling() -> bool:
    """Whether results are being handed out."""
    recall = _current()
    return recall is not None and recall._coming is not None


def remember(compute: Compute, *, narrow: bool = False) -> tuple[Tensor, ...]:
    """``compute()``, noted or found. No gradients pass through what was found.

    Args:
        compute: what gives the results.
        narrow: int64 results are noted as int32, in half the memory, and found as int64. Their
            values must fit, and no result may be int32 itself.
    """
    recall = _current()
    return compute() if recall is None else recall._of(compute, narrow)
