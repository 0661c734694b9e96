"""How a call becomes launches of kernels: tiles, strides, tags and compile-time constants.

Written without Triton, so that it can be read (and imported) without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.head_share import numbering
from reformer_hf.ops.seeds import fold_seed
from reformer_hf.ops.sorting import spaced_rank
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

HEAD_SIZES = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Ranks, with gaps between buckets, must stay clear of the tags of empty slots, 2**30.
MAX_LENGTH = 1 << 29
_SMALLEST_BLOCK = 16  # what matrix units take
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
    "first_head",
    "all_heads",
    "round_",
)
FORWARD, QUERIES, KEYS = "forward", "queries", "keys"


@dataclass(frozen=True)
class Tiling:
    """Slots of a tile, and warps of the program that works on it."""

    block: int
    warps: int


def choose_tiling(
    kernel: str,
    dtype: torch.dtype,
    size: int,
    *,
    is_ring: bool,
    own_keys: bool,
    counts_or_drops: bool,
) -> Tiling:
    """The largest tile whose program keeps everything in registers, on compute capability 9.0.

    A tile of 64 queries feeds the asynchronous matrix units (``wgmma``), which smaller ones do not.
    With 64 keys and heads of 64, scores and probabilities are 32 registers a thread at 4 warps, and
    so is every fp32 sum of rows. The kernel for keys holds two sums and two score tiles and needs 8
    warps for them, in the plain case of LSH attention; in all others it takes smaller tiles.
    Counting sightings and dropout need registers for every pair, and fp32 three parts of every
    operand.

    tests/ops/test_triton_compilation.py holds all of this to "nothing spills".

    Args:
        kernel: ``FORWARD``, or in the backward pass ``QUERIES`` or ``KEYS``.
        dtype: of the vectors.
        size: head size.
        is_ring: the ``chunk`` pattern.
        own_keys: keys are no queries of unit length.
        counts_or_drops: duplicates are counted once, or there is dropout.
    """
    if dtype == torch.float32:
        return Tiling(16 if size > 64 or counts_or_drops else 32, 8)
    if counts_or_drops or (kernel == KEYS and (is_ring or own_keys or size > 64)):
        return Tiling(32, 8)
    return Tiling(64, 8 if size > 64 or kernel == KEYS else 4)


class Launch:
    """The launches of one call: each kernel once for each round.

    Attributes:
        num_rounds: ``R``.
        is_ring: the tiles of all rounds form a ring (``chunk`` pattern).
        inputs: query, key (or ``None``) and value.
        tables: sorted order, tags, places and which tokens are real, each ``None`` if not needed.
        delta_tokens: tokens of a program that walks over the tokens as they come.
    """

    delta_tokens = 64

    def __init__(self, call: WindowedAttentionCall) -> None:
        window = call.window
        self.num_rounds = call.num_hashes
        self.is_ring = window.pattern == "chunk"
        self.inputs = (
            _dense_vectors(call.query),
            None if call.key is None else _dense_vectors(call.key),
            _dense_vectors(call.value),
        )
        self._call = call
        length = call.query.shape[2]
        # No two tokens of a bucket are further apart than the sequence is long.
        self._before = window.before if self.is_ring else min(window.before, length - 1)
        self._after = window.after if self.is_ring else min(window.after, length - 1)
        self._union = not window.count_duplicates and (self.is_ring or self.num_rounds > 1)
        self.tables, self._order_strides = self._read_order()

    def _read_order(self) -> tuple[tuple[Tensor | None, ...], tuple[int, int]]:
        """The tables, and the steps of the first three from row to row and from head to head."""
        call, window = self._call, self._call.window
        order, length = call.order, call.query.shape[2]
        real = None
        if self.is_ring and call.real is not None:
            real = call.real.contiguous().view(torch.uint8)
        meets_again = self.is_ring and (window.exclude_self or self._union)
        place = None
        if order is None:
            if meets_again:
                slots = torch.arange(length, dtype=torch.int32, device=call.query.device)
                place = slots // window.chunk_length
            return (None, None, place, real), (0, 0)
        rows, heads, rounds, _ = order.order.shape
        strides = (rounds * length * heads * (rows > 1), rounds * length * (heads > 1))
        if self.is_ring:
            if meets_again:
                chunks = -(-length // window.chunk_length)
                first = torch.arange(rounds, device=order.rank.device).view(-1, 1) * chunks
                place = (order.rank // window.chunk_length + first).to(torch.int32)
            return (order.order.contiguous(), None, place, real), strides
        spacing = max(self._before, self._after) + 1
        slots = torch.arange(length, device=order.order.device)
        tag = (slots + spacing * order.bucket.gather(-1, order.order)).to(torch.int32)
        if self._union:
            place = spaced_rank(order, spacing).to(torch.int32)
        return (order.order.contiguous(), tag, place, real), strides

    def _tiling(self, kernel: str) -> tuple[Tiling, int, int]:
        """Tiling, slots of a chunk (a tile of a window is its own chunk), and tiles of a chunk."""
        call, window = self._call, self._call.window
        tiling = choose_tiling(
            kernel,
            call.query.dtype,
            call.query.shape[3],
            is_ring=self.is_ring,
            own_keys=call.key is not None,
            counts_or_drops=self._union or window.dropout > 0.0,
        )
        if not self.is_ring:
            return tiling, tiling.block, 1
        smallest = max(_SMALLEST_BLOCK, 1 << (window.chunk_length - 1).bit_length())
        tiling = replace(tiling, block=min(tiling.block, smallest))
        return tiling, window.chunk_length, -(-window.chunk_length // tiling.block)

    def run(self, kernel: str, function: Any, index: int, results: Sequence[Any]) -> None:
        """Launch a kernel for a round.

        Args:
            kernel: ``FORWARD``, ``QUERIES`` or ``KEYS``.
            function: the kernel.
            index: the round.
            results: its arguments between the inputs and the tables.
        """
        call, window = self._call, self._call.window
        batch, heads, length, size = call.query.shape
        tiling, chunk_length, sub = self._tiling(kernel)
        num_tiles = -(-length // chunk_length) * sub
        alone = window.exclude_self and window.causal
        before, after = self._before, self._after
        function[(num_tiles, batch * heads)](
            *self.inputs,
            *results,
            *self.tables,
            *(s for x in self.inputs for s in _strides(x)),
            *self._order_strides,
            *(length, heads, *numbering(window.heads, heads)),
            *(num_tiles, self.num_rounds, chunk_length),
            *(before, after, -1 if alone else after, before + after + (not alone)),
            call.scale * math.log2(math.e),
            fold_seed(window.dropout_seed, 0) & 0x7FFFFFFF,
            fold_seed(window.dropout_seed, 1) & 0x7FFFFFFF,
            int(window.dropout * (1 << 31)),
            1.0 / (1.0 - window.dropout),
            index,
            HEAD=size,
            BLOCK=tiling.block,
            SUB=sub,
            RING=self.is_ring,
            CAUSAL=window.causal,
            EXCLUDE_SELF=window.exclude_self,
            UNION=self._union,
            DROPOUT=window.dropout > 0.0,
            FIRST=index == 0,
            LAST=index == self.num_rounds - 1,
            PRECISION="tf32x3",
            num_warps=tiling.warps,
            num_stages=2,
            # Otherwise the assembler may prefer a spill to a register that halves the occupancy.
            maxnreg=255,
            enable_fp_fusion=True,
        )


def _dense_vectors(x: Tensor) -> Tensor:
    """With the numbers of a vector next to each other: ``x`` itself, or a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Steps from row to row, head to head and token to token."""
    return (0, 0, 0) if x is None else (x.stride(0), x.stride(1), x.stride(2))
