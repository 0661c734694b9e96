"""Adding a residual to a stored stream, and taking it off again.

On CUDA one kernel does each in one pass over memory. The two autograd Functions form the same sums
where the engine's own does not: their gradients pass straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.precision import widen
from reformer_hf.ops.reversible.grid import (
    STEP_LIMIT,
    STREAM_LIMIT,
    float_of,
    from_steps,
    round_to_steps,
    to_steps,
)
from reformer_hf.ops.reversible.range_gauge import RangeGauge
from reformer_hf.ops.triton_support import usable_on

# Elements of a stream that are updated together (1 MiB of fp32). An accelerator gets all at once.
_BLOCK_ELEMENTS = 1 << 18


def _blocks(x: Tensor) -> Iterator[slice]:
    """Ranges of positions of ``[B, N, d]``, so small that repeated passes over one are cheap."""
    size = x.shape[1]
    if x.device.type == "cpu":
        size = max(1, _BLOCK_ELEMENTS // max(1, x[:, :1].numel()))
    for start in range(0, x.shape[1], size):
        yield slice(start, start + size)


def add(stored: Tensor, added: Tensor, gauge: RangeGauge, total: Tensor, out: Tensor) -> None:
    """Write the stored stream after a step to ``total`` and what is read of it to ``out``.

    Args:
        stored: ``[B, N, d]`` int32 or int64, the stream before the step.
        added: ``[B, N, d]``, floating point, what the step adds.
        gauge: watches the range.
        total: like ``stored``; may be ``stored`` itself.
        out: ``[B, N, d]`` fp32 or fp64.
    """
    if usable_on(stored.device):
        from reformer_hf.ops.reversible import triton_residual

        if triton_residual.fits(stored, added):
            limits = STREAM_LIMIT, STEP_LIMIT
            gauge.note(triton_residual.add(stored, added, total, out, gauge.grid, *limits))
            return
    for block in _blocks(stored):
        steps = round_to_steps(added[:, block], gauge.grid)
        torch.add(stored[:, block], steps.to(stored.dtype), out=total[:, block])
        torch.mul(total[:, block], gauge.factor(total[:, block], steps), out=out[:, block])


def subtract(stored: Tensor, added: Tensor, grid: float | None, total: Tensor) -> None:
    """Write the stored stream before a step to ``total``, which may be ``stored`` itself."""
    if grid is not None and usable_on(stored.device):
        from reformer_hf.ops.reversible import triton_residual

        if triton_residual.fits(stored, added):
            triton_residual.subtract(stored, added, total, grid, STEP_LIMIT)
            return
    for block in _blocks(stored):
        torch.sub(stored[:, block], to_steps(added[:, block], grid), out=total[:, block])


class ExactAdd(torch.autograd.Function):
    """``target + added`` through the stored stream; gradients pass straight to both."""

    @staticmethod
    def compute(
        stored: Tensor, target: Tensor, added: Tensor, gauge: RangeGauge
    ) -> tuple[Tensor, Tensor]:
        """The stored stream after the step, and what is read of it."""
        del target
        total, out = torch.empty_like(stored), torch.empty_like(stored, dtype=float_of(stored))
        add(stored, added, gauge, total, out)
        return total, out

    @staticmethod
    def forward(
        ctx: Any, stored: Tensor, target: Tensor, added: Tensor, gauge: RangeGauge
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = added.dtype
        total, out = ExactAdd.compute(stored, target, added, gauge)
        ctx.mark_non_differentiable(total)
        return total, out

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad, grad.to(ctx.dtype), None


class EnterGrid(torch.autograd.Function):
    """``from_steps(to_steps(x))``; the gradient passes straight through."""

    @staticmethod
    def compute(x: Tensor, gauge: RangeGauge) -> tuple[Tensor, Tensor]:
        """The stored stream, and what is read of it."""
        stored = to_steps(x, gauge.grid)
        factor = gauge.factor(stored, widen(x).mul(1.0 / gauge.grid), STREAM_LIMIT)
        return stored, from_steps(stored, factor)

    @staticmethod
    def forward(ctx: Any, x: Tensor, gauge: RangeGauge) -> tuple[Tensor, Tensor]:
        ctx.dtype = x.dtype
        stored, out = EnterGrid.compute(x, gauge)
        ctx.mark_non_differentiable(stored)
        return stored, out

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
