"""A stable counting sort by bucket in Triton, for any number of lines at once.

The tokens of a line (one row, head and round) are cut into spans. With ``c[d, s]`` the tokens of
digit ``d`` in span ``s``, a token goes to the slot

    ``sum_{d' < d, s} c[d', s] + sum_{s' < s} c[d, s'] + tokens of digit d before it in its span``.

The first two terms are one exclusive sum over the table ``c``, digit by digit: a kernel counts,
:func:`torch.cumsum` adds up, a second kernel places. Nothing depends on the order in which programs
run, so two runs give the same bits, and nothing waits for the device.

Up to 512 buckets are one digit; more are sorted by several digits, the least significant first,
and keys that are not sorted yet travel with their tokens. The first pass reads 16 bytes a token and
every further one too; a pass writes 8, the last one 16. The table adds ``8 digits / 1024`` bytes a
token, each written and read twice.

See :mod:`~reformer_hf.ops.sorting`, which says the same in PyTorch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_SPAN = 1024
# 256 buckets and one for padding are still sorted in one pass.
_MOST_DIGITS = 512
# Slots, tokens and keys are 32-bit integers in the kernels, with room for a span more.
_LIMIT = 1 << 30


@triton.jit
def _read(keys, places, valid, num_buckets, FIRST: tl.constexpr):
    """What is left to sort by, int32: the bucket, or the upper half of a key of an earlier pass."""
    key = tl.load(keys + places, mask=valid, other=0)
    if FIRST:
        # Vectors with NaN may hash anywhere, and that must not become an address.
        key = tl.minimum(tl.maximum(key, 0), num_buckets - 1)
    else:
        key = key >> 32
    return key.to(tl.int32)


@triton.jit
def count_kernel(
    keys,
    table,
    length,
    spans,
    digits,
    num_buckets,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
):
    """How often each digit occurs in one span; ``WIDTH`` is a power of two, at least ``digits``."""
    program = tl.program_id(0).to(tl.int64)
    line = program // spans
    span = program % spans
    places = span * SPAN + tl.arange(0, SPAN)
    valid = places < length
    digit = _read(keys + line * length, places, valid, num_buckets, FIRST) % digits
    bins = tl.arange(0, WIDTH)
    counts = tl.histogram(digit, WIDTH, mask=valid)
    cells = (line * digits + bins) * spans + span
    tl.store(table + cells, counts.to(tl.int64), mask=bins < digits)


@triton.jit
def place_kernel(
    keys,
    ends,
    out,
    rank,
    length,
    spans,
    digits,
    num_buckets,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Move the tokens of one span; ``ends`` is the inclusive sum over the tables of all lines.

    ``out`` gets the order and ``rank`` its inverse; before the last pass ``out`` gets keys: what is
    left to sort by in the upper 32 bits, the token in the lower.
    """
    program = tl.program_id(0).to(tl.int64)
    line = program // spans
    span = program % spans
    keys += line * length
    out += line * length
    within = tl.arange(0, SPAN)
    places = span * SPAN + within
    valid = places < length
    digit = _read(keys, places, valid, num_buckets, FIRST) % digits

    # Every table sums to the length, so ``ends`` starts each line at line * length.
    bins = tl.arange(0, WIDTH)
    cells = (line * digits + bins) * spans + span
    starts = tl.load(ends + cells - 1, mask=(bins < digits) & (cells > 0), other=0)
    counts = tl.histogram(digit, WIDTH, mask=valid)
    # From a token's slot in the sorted span to its slot in the sorted line.
    shift = (starts - line * length).to(tl.int32) - (tl.cumsum(counts, axis=0) - counts)

    # Sorted within the span, the tokens of a digit are written next to each other.
    mixed = tl.sort(tl.where(valid, digit, WIDTH - 1) * SPAN + within)
    slots = tl.gather(shift, mixed // SPAN, axis=0) + within
    places = span * SPAN + mixed % SPAN
    valid = places < length
    if FIRST:
        tokens = places
    else:
        tokens = tl.load(keys + places, mask=valid, other=0) & 0xFFFFFFFF
    if LAST:
        tl.store(out + slots, tokens, mask=valid)
        tl.store(rank + line * length + tokens, slots.to(tl.int64), mask=valid)
    else:
        left = _read(keys, places, valid, num_buckets, FIRST) // digits
        tl.store(out + slots, (left.to(tl.int64) << 32) | tokens, mask=valid)


def fits(buckets: Tensor, num_buckets: int) -> bool:
    """Whether the kernels take these buckets ``[.., N]``, all below ``num_buckets``."""
    return buckets.dtype == torch.int64 and max(buckets.shape[-1], num_buckets) < _LIMIT


def _digits_of_passes(num_buckets: int) -> list[int]:
    """As few passes as can be, all but the last with equally many digits."""
    passes = 1
    while _MOST_DIGITS**passes < num_buckets:
        passes += 1
    radix = math.ceil(num_buckets ** (1 / passes))
    return [radix] * (passes - 1) + [-(-num_buckets // radix ** (passes - 1))]


def sort_tokens(buckets: Tensor, num_buckets: int) -> tuple[Tensor, Tensor]:
    """Sort the tokens of every line by ``(bucket, position)``.

    Args:
        buckets: ``[.., N]`` int64, in ``[0, num_buckets)``; others count as the nearest of these.
        num_buckets: at least 1.

    Returns:
        The order and its inverse, ``[.., N]`` int64 each.
    """
    length = buckets.shape[-1]
    keys = buckets.contiguous()
    spans = triton.cdiv(length, _SPAN)
    lines = math.prod(buckets.shape[:-1])
    order, rank = torch.empty_like(keys), torch.empty_like(keys)
    passes = _digits_of_passes(num_buckets)
    for index, digits in enumerate(passes):
        first, last = index == 0, index == len(passes) - 1
        width = max(2, triton.next_power_of_2(digits))
        table = torch.empty(lines * digits * spans, dtype=torch.int64, device=keys.device)
        numbers = length, spans, digits, num_buckets
        count_kernel[(lines * spans,)](
            *(keys, table, *numbers),
            FIRST=first,
            WIDTH=width,
            SPAN=_SPAN,
            enable_fp_fusion=True,
        )
        out = order if last else torch.empty_like(keys)
        place_kernel[(lines * spans,)](
            *(keys, table.cumsum(dim=0), out, rank, *numbers),
            FIRST=first,
            LAST=last,
            WIDTH=width,
            SPAN=_SPAN,
            enable_fp_fusion=True,
        )
        keys = out
    return order, rank
