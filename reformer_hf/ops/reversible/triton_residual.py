"""Residual sums on the grid in Triton: one pass over memory instead of seven.

With ``x`` what a sub-layer adds, ``g`` the grid and ``s`` the stored stream in int32,

    ``n = round(x / g)`` (ties to even), ``s' = s + n``, ``out = g s'`` in fp32,

and per program the largest share of its range that a stream or a step has used. A program that
finds a share of 1 or more, or a number that is not finite, writes NaN instead of ``out``.

See :mod:`~reformer_hf.ops.reversible.residual_sums`, which says the same in PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
# From here on every fp32 number is whole, and adding this rounds a smaller one to a whole number.
_WHOLE = tl.constexpr(float(1 << 23))


@triton.jit
def _round(x):
    size = tl.abs(x)
    size = tl.where(size < _WHOLE, (size + _WHOLE) - _WHOLE, size)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def residual_kernel(
    stored,
    added,
    total,
    out,
    peaks,
    size,
    grid,
    stream_limit,
    step_limit,
    RESTORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``total = stored + steps``, or, to restore what was before, ``stored - steps``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = place < size
    # The grid is a power of two, so dividing by it is exact.
    steps = _round(tl.load(added + place, mask=valid, other=0.0).to(tl.float32) / grid)
    fits = tl.abs(steps) < step_limit
    whole = tl.where(fits, steps, 0.0).to(tl.int32)
    before = tl.load(stored + place, mask=valid, other=0)
    if RESTORE:
        tl.store(total + place, before - whole, mask=valid)
    else:
        after = before + whole
        wide = after.to(tl.float32)
        share = tl.abs(wide) / stream_limit
        # Shares of NaN count as none: what a stream turns into must not hide how it came to that.
        used = tl.where(steps == steps, tl.abs(steps) / step_limit, 0.0)
        tl.store(peaks + tl.program_id(0), tl.max(tl.maximum(share, used), axis=0))
        doubtful = tl.max((~fits | (share >= 1.0)).to(tl.int32), axis=0)
        read = tl.where(doubtful == 0, wide * grid, float("nan"))
        tl.store(total + place, after, mask=valid)
        tl.store(out + place, read, mask=valid)


def fits(stored: Tensor, added: Tensor) -> bool:
    """Whether the kernel takes these tensors: an int32 stream, numbers one after the other."""
    return stored.dtype == torch.int32 and stored.is_contiguous() and added.is_contiguous()


def add(
    stored: Tensor,
    added: Tensor,
    total: Tensor,
    out: Tensor,
    grid: float,
    stream_limit: float,
    step_limit: float,
) -> Tensor:
    """Write ``stored + steps`` to ``total`` and ``grid * total`` to ``out``.

    Args:
        stored: ``[B, N, d]`` int32.
        added: ``[B, N, d]``, floating point.
        total: like ``stored``; may be ``stored`` itself.
        out: ``[B, N, d]`` fp32.
        grid: a power of two.
        stream_limit: steps that a stream may reach.
        step_limit: steps that may be added at once.

    Returns:
        The largest share of its limit that was used, a 0-d fp32 tensor.
    """
    programs = triton.cdiv(stored.numel(), _BLOCK)
    peaks = torch.empty(programs, dtype=torch.float32, device=stored.device)
    residual_kernel[(programs,)](
        *(stored, added, total, out, peaks, stored.numel(), grid, stream_limit, step_limit),
        RESTORE=False,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
    )
    return peaks.amax()


def subtract(stored: Tensor, added: Tensor, total: Tensor, grid: float, step_limit: float) -> None:
    """Write ``stored - steps`` to ``total`` (which may be ``stored``); see :func:`add`."""
    residual_kernel[(triton.cdiv(stored.numel(), _BLOCK),)](
        *(stored, added, total, None, None, stored.numel(), grid, 1.0, step_limit),
        RESTORE=True,
        BLOCK=_BLOCK,
        enable_fp_fusion=True,
    )
