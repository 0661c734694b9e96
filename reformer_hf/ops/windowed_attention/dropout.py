"""Attention dropout without a random state: a hash of (seed, row, head, round, query, key).

Every backend evaluates the same function at the pairs that it visits, in whatever order, so the
backward pass and a recomputed forward pass drop the same pairs, and backends can be compared with
dropout switched on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.head_share import HeadShare, numbering
from reformer_hf.ops.seeds import fold_seed

# Odd 32-bit multipliers of the "lowbias32" integer hash (Wellons, "Prospecting for hash functions",
# 2018), as signed numbers; int32 products wrap.
_M1 = 0x7FEB352D
_M2 = 0x846CA68B - (1 << 32)
_HASH_KEY = 1


def _mix(x: Tensor) -> Tensor:
    """Scramble int32 numbers in place, into ``[0, 2**31)``.

    The shifts are arithmetic and copy the sign, so that ``x ^ (x >> 16)`` is never negative.
    """
    x ^= x >> 16
    x *= _M1
    x ^= x >> 15
    x *= _M2
    x ^= x >> 16
    return x


def numbered_slices(
    rows: Tensor | int, heads: Tensor, share: HeadShare | None, num_heads: int
) -> Tensor:
    """Index ``b * H + h`` of rows and heads, with ``H`` and ``h`` those of the layer.

    Args:
        rows: ``b``.
        heads: of the call, broadcastable to ``rows``.
        share: which of the layer's heads the call holds; ``None``: all.
        num_heads: heads of the call.
    """
    first, total = numbering(share, num_heads)
    return rows * total + first + heads


def query_codes(seed: int, slices: Tensor, rounds: Tensor, positions: Tensor) -> Tensor:
    """One int32 code per query slot.

    Args:
        seed: the seed of the call.
        slices: :func:`numbered_slices`, broadcastable to ``positions``.
        rounds: hash round of the slot, broadcastable to ``positions``.
        positions: position of the token in the sequence.
    """
    code = (fold_seed(seed, 0) & 0x7FFFFFFF) ^ slices.to(torch.int32)
    code = _mix(code * _M1 + rounds.to(torch.int32))
    return _mix(code * _M1 + positions.to(torch.int32))


def key_codes(seed: int, positions: Tensor) -> Tensor:
    """One int32 code per key slot (see :func:`query_codes`)."""
    start = fold_seed(seed, _HASH_KEY) & 0x7FFFFFFF
    return _mix(start ^ positions.to(torch.int32) * _M2)


def keep_mask(query_code: Tensor, key_code: Tensor, dropout: float) -> Tensor:
    """True where a pair is kept, with probability ``1 - dropout``; codes broadcast against another.

    A code is kept if it is at least ``dropout * 2**31``; codes spread evenly over ``[0, 2**31)``.
    """
    code = _mix(query_code ^ key_code)
    return code >= int(dropout * (1 << 31))
