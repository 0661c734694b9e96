"""The memory traffic of attention and nothing else: the other roof that no implementation passes.

Every round reads queries (which are keys) and values in the forward pass and, with the gradient of
the output, once more in the backward pass; the output and two gradients are written once. Nothing
that an implementation keeps between rounds is counted. The rows are copied in the order in which
they lie, which is faster than gathering them by a sorted order can be.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from benchmark.case import Case
from benchmark.contender import Contender, Finding, Workload, check_close
from benchmark.contenders.attention_operation import random_heads


class _Copies(Workload):
    """As many copies as move the bytes of a step; a copy reads and writes."""

    def __init__(self, case: Case) -> None:
        self._source, self._target = random_heads(case, 2)
        moved = case.rounds * (2 + 3) + 3
        self._whole, self._half = divmod(moved, 2)

    @torch.no_grad()
    def step(self) -> None:
        """The copies."""
        for _ in range(self._whole):
            self._target.copy_(self._source)
        if self._half:
            part = self._source.shape[2] // 2
            self._target[:, :, :part].copy_(self._source[:, :, :part])

    def findings(self) -> list[Finding]:
        """A copy is equal."""
        return [check_close("copy", self._target, self._source, 0.0)]

    def parameters(self) -> Iterable[Tensor]:
        """None."""
        return ()


class AttentionCopies(Contender):
    """``5 R + 3`` tensors of queries moved."""

    name = "copies"
    label = "memory traffic alone"

    def build(self, case: Case) -> Workload:
        """Two tensors."""
        return _Copies(case)
