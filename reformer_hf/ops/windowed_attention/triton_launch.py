"""How a call becomes launches of kernels: sizes, strides, tags and compile-time constants.

Written without Triton, so that it can be read (and imported) without it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.seeds import fold_seed
from reformer_hf.ops.sorting import spaced_rank
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

HEAD_SIZES = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Ranks, with gaps between buckets, must stay clear of the tags of empty slots, 2**30.
MAX_LENGTH = 1 << 29
# Arguments whose values must not give rise to compiled variants: they change from call to call.
VARIABLE = (
    "before",
    "after",
    "shift",
    "span",
    "query_seed",
    "key_seed",
    "threshold",
    "keep_scale",
    "round_",
)
_LARGEST_BLOCK = 64
_SMALLEST_BLOCK = 16  # what matrix units take


def _rows(x: Tensor) -> Tensor:
    """With the numbers of a row next to each other: ``x`` itself, or a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def block_size(chunk_length: int, is_ring: bool) -> int:
    """Slots of a tile."""
    if not is_ring:
        return _LARGEST_BLOCK
    return min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, 1 << (chunk_length - 1).bit_length()))


class Launch:
    """The launches of one call, one for each round.

    Attributes:
        num_rounds: ``R``.
        is_ring: the tiles of all rounds form a ring (``chunk`` pattern).
        grid: programs of a launch: tiles of a round, rows times heads.
        inputs: query, key (or ``None``) and value.
        tables: sorted order, tags, places and which tokens are real, each ``None`` if not needed.
        delta_rows: rows of a program that walks over the tokens as they come.
    """

    delta_rows = 64

    def __init__(self, call: WindowedAttentionCall) -> None:
        window = call.window
        batch, heads, length, size = call.query.shape
        self.num_rounds = call.num_hashes
        self.is_ring = window.pattern == "chunk"
        self._window = window
        self._size = size
        self._block = block_size(window.chunk_length, self.is_ring)
        self._chunk_length = window.chunk_length if self.is_ring else self._block
        self._sub = -(-self._chunk_length // self._block)
        num_tiles = -(-length // self._chunk_length) * self._sub
        self.grid = (num_tiles, batch * heads)
        self.inputs = (
            _rows(call.query),
            None if call.key is None else _rows(call.key),
            _rows(call.value),
        )
        self._strides = [s for x in self.inputs for s in _strides(x)]
        # No two tokens of a bucket are further apart than the sequence is long.
        before = window.before if self.is_ring else min(window.before, length - 1)
        after = window.after if self.is_ring else min(window.after, length - 1)
        alone = window.exclude_self and window.causal
        self._sizes = (
            *(length, heads, num_tiles, self.num_rounds, self._chunk_length),
            *(before, after, -1 if alone else after, before + after + (not alone)),
        )
        self._scale = call.scale
        self._order = self._order_arguments(call, max(before, after) + 1)
        self.tables = self._order[:4]
        self._precision = "tf32x3" if call.query.dtype == torch.float32 else "tf32"

    def _order_arguments(self, call: WindowedAttentionCall, spacing: int) -> tuple[Any, ...]:
        """Sorted order, tags, places, which tokens are real, and the strides of the first three."""
        order, window = call.order, call.window
        real = None
        if self.is_ring and call.real is not None:
            real = call.real.contiguous().view(torch.uint8)
        place = None
        many = self.is_ring and (window.exclude_self or not window.count_duplicates)
        if order is None:
            if many:
                length = call.query.shape[2]
                slots = torch.arange(length, dtype=torch.int32, device=call.query.device)
                place = slots // self._chunk_length
            return None, None, place, real, 0, 0
        rows, heads, rounds, length = order.order.shape
        strides = (rounds * length * heads * (rows > 1), rounds * length * (heads > 1))
        if self.is_ring:
            if many:
                chunks = self.grid[0] // self._sub
                first = torch.arange(rounds, device=order.rank.device).view(-1, 1) * chunks
                place = (order.rank // self._chunk_length + first).to(torch.int32)
            return order.order.contiguous(), None, place, real, *strides
        slots = torch.arange(length, device=order.order.device)
        tag = (slots + spacing * order.bucket.gather(-1, order.order)).to(torch.int32)
        if not window.count_duplicates and rounds > 1:
            place = spaced_rank(order, spacing).to(torch.int32)
        return order.order.contiguous(), tag, place, real, *strides

    def arguments(self, index: int) -> tuple[Any, ...]:
        """Arguments of the launch of a round that follow those of the results."""
        window = self._window
        return (
            *self._strides,
            *self._order[4:],
            *self._sizes,
            self._scale * math.log2(math.e),
            fold_seed(window.dropout_seed, 0) & 0x7FFFFFFF,
            fold_seed(window.dropout_seed, 1) & 0x7FFFFFFF,
            int(window.dropout * (1 << 31)),
            1.0 / (1.0 - window.dropout),
            index,
        )

    def constants(self, index: int) -> dict[str, Any]:
        """Compile-time arguments of the launch of a round."""
        window = self._window
        return {
            "HEAD": self._size,
            "BLOCK": self._block,
            "SUB": self._sub,
            "RING": self.is_ring,
            "CAUSAL": window.causal,
            "EXCLUDE_SELF": window.exclude_self,
            "UNION": not window.count_duplicates and (self.is_ring or self.num_rounds > 1),
            "DROPOUT": window.dropout > 0.0,
            "FIRST": index == 0,
            "LAST": index == self.num_rounds - 1,
            "PRECISION": self._precision,
            "num_warps": 4,
            "num_stages": 2,
            "enable_fp_fusion": True,
        }


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Steps from row to row, head to head and token to token."""
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(2))
