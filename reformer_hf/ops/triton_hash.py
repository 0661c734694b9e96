"""The angular hash in Triton: projections never reach memory.

Per round, and per factor ``b`` of the number of buckets, with the rotations ``R`` ``[D, b / 2]``,

    ``h = argmax([x R; -x R])``,  ``bucket = h_0 + b_0 h_1``.

One program reads a tile of vectors once and hashes it in all rounds. Products are formed on the
tensor cores with every fp32 operand in three parts of TF32, which is as good as fp32: an arg-max
flips on coarser rounding.

See :mod:`~reformer_hf.ops.hashing`, which says the same in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
_SIZES = (16, 32, 64, 128)
_LARGEST_HALF = 64  # a wider tile of rotations does not fit into registers


@triton.jit
def _largest(x, rotations, step, HEAD: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr):
    """``argmax([p; -p])`` of ``p = x R`` ``[BLOCK, HALF]``; ``WIDTH`` is what matrix units take."""
    rows = tl.arange(0, HEAD)
    columns = tl.arange(0, WIDTH)
    inside = columns < HALF
    r = tl.load(rotations + rows[:, None] * step + columns[None, :], inside[None, :], 0.0)
    p = tl.dot(x, r, input_precision="tf32x3")
    ahead, there = tl.max(tl.where(inside[None, :], p, -float("inf")), axis=1, return_indices=True)
    behind, back = tl.max(tl.where(inside[None, :], -p, -float("inf")), axis=1, return_indices=True)
    # Of a vector with NaN, a column beyond the rotations may be the largest.
    last = HALF - 1
    return tl.where(ahead >= behind, tl.minimum(there, last), tl.minimum(back, last) + HALF)


@triton.jit
def angular_kernel(
    vectors,
    rotations,
    buckets,
    vectors_b,
    vectors_h,
    vectors_n,
    length,
    heads,
    num_hashes,
    HEAD: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    FIRST_WIDTH: tl.constexpr,
    SECOND_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Buckets of one tile; ``FIRST`` and ``SECOND`` are half the factors (0: there is none)."""
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // heads
    h = slice_ % heads
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = tokens < length
    columns = tl.arange(0, HEAD)
    start = vectors + b * vectors_b + h * vectors_h
    x = tl.load(start + tokens[:, None] * vectors_n + columns[None, :], valid[:, None], 0.0)
    x = x.to(tl.float32)
    step = num_hashes * (FIRST + SECOND)
    rotations += h * HEAD * step
    for r in range(num_hashes):
        drawn = rotations + r * (FIRST + SECOND)
        bucket = _largest(x, drawn, step, HEAD, FIRST, FIRST_WIDTH)
        if SECOND > 0:
            bucket += 2 * FIRST * _largest(x, drawn + FIRST, step, HEAD, SECOND, SECOND_WIDTH)
        line = (slice_ * num_hashes + r) * length
        tl.store(buckets + line + tokens, bucket.to(tl.int64), mask=valid)


def fits(vectors: Tensor, factors: Sequence[int]) -> bool:
    """Whether the kernel takes these vectors, and factors of a number of buckets above 1."""
    sizes_fit = vectors.shape[-1] in _SIZES and vectors.dtype != torch.float64
    return sizes_fit and len(factors) <= 2 and max(factors) <= 2 * _LARGEST_HALF


def _width(half: int) -> int:
    return max(16, triton.next_power_of_2(half))


def hash_angular(vectors: Tensor, rotations: Tensor, factors: Sequence[int]) -> Tensor:
    """Buckets ``[B, H, R, N]`` int64.

    Args:
        vectors: ``[B, H, N, D]``.
        rotations: ``[H, D, R, sum(factors) / 2]`` fp32.
        factors: one or two even numbers.
    """
    batch, heads, length, size = vectors.shape
    num_hashes = rotations.shape[2]
    vectors = vectors if vectors.stride(-1) == 1 else vectors.contiguous()
    shape = (batch, heads, num_hashes, length)
    buckets = torch.empty(shape, dtype=torch.int64, device=vectors.device)
    first, second = factors[0] // 2, factors[1] // 2 if len(factors) > 1 else 0
    angular_kernel[(triton.cdiv(length, _BLOCK), batch * heads)](
        *(vectors, rotations.contiguous(), buckets),
        *(vectors.stride(0), vectors.stride(1), vectors.stride(2)),
        *(length, heads, num_hashes),
        HEAD=size,
        FIRST=first,
        SECOND=second,
        FIRST_WIDTH=_width(first),
        SECOND_WIDTH=_width(second),
        BLOCK=_BLOCK,
        num_warps=8 if size > 64 else 4,
        enable_fp_fusion=True,
    )
    return buckets
