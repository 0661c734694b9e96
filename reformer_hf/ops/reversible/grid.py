"""The grid of the residual streams: stored as whole numbers, so that sums are exact.

Floating-point sums round, so a stream recovered by subtraction is normally a little off, and
gradients are those of slightly different activations. Here a stream is *stored* as whole numbers of
steps of a grid ``g`` (a power of two) in int32, what a sub-layer adds is rounded to steps first,
and integer sums are exact: subtracting gives back the same bits. What the layers *read* is
``g * stored`` in fp32.

Why integers: sums of grid multiples in fp32 are exact too, but only below ``2**24 g``, so a grid
that leaves room for large activations is coarse (``2**-13`` for 2,048), and the last-bit noise of
matrix products then flips values by visible amounts. Thirty-one bits allow ``2**-20`` for the same
range and the same memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.precision import widen

# A stream may use three quarters of the range of int32 and a single step one quarter, so that no
# sum wraps around before it is noticed: in steps of the grid.
_RANGE = float(1 << 31)
STREAM_LIMIT, STEP_LIMIT = 0.75 * _RANGE, 0.25 * _RANGE


def round_to_steps(x: Tensor, grid: float) -> Tensor:
    """The nearest whole number of grid steps (ties to even), still as fp32 or fp64."""
    return widen(x).mul(1.0 / grid).round_()


def to_steps(x: Tensor, grid: float | None) -> Tensor:
    """What is stored for a float tensor: the nearest whole number of grid steps (ties to even).

    Args:
        x: any shape, floating point.
        grid: a power of two, or ``None``: the numbers themselves are stored.

    Returns:
        int32 (int64 for fp64 input), or ``x`` in its own dtype without a grid.
    """
    if grid is None:
        return x
    return round_to_steps(x, grid).to(torch.int64 if x.dtype == torch.float64 else torch.int32)


def from_steps(stored: Tensor, grid: float | Tensor | None) -> Tensor:
    """The inverse of :func:`to_steps`: ``grid * stored`` in fp32 (fp64 for int64)."""
    if grid is None:
        return stored
    if not isinstance(grid, Tensor):
        grid = torch.full((), grid, dtype=float_of(stored), device=stored.device)
    # Times a tensor without dimensions, whole numbers become floats of its dtype in the same pass.
    return stored * grid


def float_of(stored: Tensor) -> torch.dtype:
    """The dtype in which a stored stream is read."""
    return torch.float64 if stored.dtype == torch.int64 else torch.float32
