"""How a call without padding becomes launches of kernels: turns, tables and compile-time constants.

Written without Triton, so that it can be read (and imported) without it.

A *turn* is one pass over all of its queries: first the local window (with the sinks beside it),
then every round of every level, in both directions where the model looks ahead. In each the keys
stand in some order and a query sees a piece of it,

    ``0 <= place(i) - place(j) < reach``.

The local window is the turn in which the order is the sequence. In the others queries are sorted by
their cursors, so that the keys of consecutive queries lie next to each other, and all tiles of
``M`` queries together walk over at most ``M (1 + reach / T) + N`` keys, whatever the buckets. No
geometry is computed beforehand and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import HybridCall
from reformer_hf.ops.hybrid_attention.query_key_hashing import hash_queries_and_keys, key_centre
from reformer_hf.ops.hybrid_attention.staircase import sort_keys
from reformer_hf.ops.hybrid_attention.window import Level, levels
from reformer_hf.ops.seeds import fold_seed

LARGEST_SIZE = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Places, with gaps between buckets, must stay clear of those of empty slots, 2**30.
MAX_LENGTH = 1 << 28
_SMALLEST_BLOCK = 16  # what matrix units take
# Query slots of a program that sums the gradients of the sinks, which all queries see.
SINK_CHUNK = 2048
# Arguments whose values must not give rise to compiled variants: they change from call to call.
VARIABLE = (
    "count",
    "first",
    "start",
    "num_keys",
    "reach",
    "query_seed",
    "key_seed",
    "threshold",
    "keep_scale",
    "first_row",
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
    kernel: str, dtype: torch.dtype, size: int, *, is_local: bool, drops: bool
) -> Tiling:
    """The largest tile whose program keeps everything in registers, on compute capability 9.0.

    tests/ops/test_triton_compilation.py holds this to "nothing spills".

    Args:
        kernel: ``FORWARD``, or in the backward pass ``QUERIES`` or ``KEYS``.
        dtype: of the vectors.
        size: head size, a power of two.
        is_local: the turn of the local window, which counts no pair twice.
        drops: there is dropout.
    """
    if dtype == torch.float32:
        if size <= 64 and kernel == FORWARD and is_local and not drops:
            return Tiling(32, 8)
        return Tiling(16, 8 if size > 64 and (is_local or kernel != KEYS) else 4)
    if drops or (size > 64 and (kernel == KEYS or (kernel == QUERIES and not is_local))):
        return Tiling(32, 4 if size <= 64 else 8)
    return Tiling(64, 4 if is_local and kernel != KEYS and size <= 64 else 8)


@dataclass(frozen=True)
class Turn:
    """One pass over some of the queries.

    Attributes:
        start: number of the first query among the ``M``.
        count: queries of a head, ``Q``.
        num_keys: the keys that take part are the first so many, ``N'``.
        reach: keys that a query sees at most.
        after: how many of them stand behind the query (local window).
        index: the round among those that count a pair once; 0 for the local window.
        rounds: their number.
        query_order: ``[B Hkv, R, G Q]`` int32, numbers ``g Q + q`` of the queries by their cursors;
            ``None``, here and below: the order of the sequence, the heads of a token side by side.
        cursor: ``[B Hkv, R, G Q]`` int32, sorted: keys in front of a query's place.
        key_order: ``[B Hkv, R, N']`` int32, the keys by rank.
        query_place: ``[B Hkv, R, G Q]`` int32, by number.
        key_place: ``[B Hkv, R, N']`` int32, by key.
    """

    start: int
    count: int
    num_keys: int
    reach: int
    after: int = 0
    index: int = 0
    rounds: int = 1
    query_order: Tensor | None = None
    cursor: Tensor | None = None
    key_order: Tensor | None = None
    query_place: Tensor | None = None
    key_place: Tensor | None = None

    @property
    def is_local(self) -> bool:
        """Whether this is the local window."""
        return self.query_order is None

    @property
    def tables(self) -> tuple[Tensor | None, ...]:
        """What kernels read of it."""
        return self.query_order, self.cursor, self.key_order, self.query_place, self.key_place

    def queries_of_keys(self, block: int) -> Tensor | None:
        """``[B Hkv, R, tiles, 2]`` int32: first and last + 1 slot of the queries that may see a
        tile of ``block`` ranks; ``None`` for the local window, where it is computed on the spot."""
        if self.cursor is None:
            return None
        rank = torch.arange(0, self.num_keys, block, dtype=torch.int32, device=self.cursor.device)
        last = (rank + block).clamp(max=self.num_keys)
        shape = (*self.cursor.shape[:2], -1)
        first = torch.searchsorted(self.cursor, rank.expand(shape).contiguous(), right=True)
        ends = (last - 1 + self.reach).expand(shape).contiguous()
        stop = torch.searchsorted(self.cursor, ends, right=True)
        return torch.stack((first, stop), dim=-1).to(torch.int32)


def turns(call: HybridCall) -> Iterator[Turn]:
    """The turns of a call without padding; the local window, which all queries have, is first."""
    window, queries, length = call.window, call.query.shape[2], call.key.shape[2]
    reach = min(window.local_window, length)
    after = 0 if window.causal else reach - 1
    yield Turn(0, queries, length, reach + after, after)
    if window.num_hashes == 0:
        return
    for level in levels(window, call.first_query, length):
        yield from _rounds(call, level)


def _rounds(call: HybridCall, level: Level) -> Iterator[Turn]:
    """The rounds of a level, in both directions where the model looks ahead."""
    window = call.window
    own = slice(level.start - call.first_query, level.stop - call.first_query)
    centre = key_centre(call.key, level)
    query_buckets, key_buckets = (
        x.flatten(0, 1)
        for x in hash_queries_and_keys(
            call.query[:, :, own], call.key[:, :, : level.stop], centre, window, level
        )
    )
    query_buckets = query_buckets.flatten(2)
    position = torch.arange(level.start, level.stop, device=call.query.device)
    position = position.repeat(call.group_size)
    for reach, ahead in ((window.keys_before, False), (window.keys_after, True)):
        if reach == 0:
            continue
        reach = min(reach, level.stop)
        key_order, key_rank, cursor = sort_keys(
            query_buckets, key_buckets, position, window.local_window, ahead=ahead
        )
        in_order, query_order = cursor.sort(dim=-1)
        turn = Turn(
            own.start,
            own.stop - own.start,
            level.stop,
            reach,
            rounds=window.num_hashes,
            query_order=query_order.to(torch.int32),
            cursor=in_order.to(torch.int32),
            key_order=key_order.to(torch.int32),
            query_place=(cursor - 1 + reach * query_buckets).to(torch.int32),
            key_place=(key_rank + reach * key_buckets).to(torch.int32),
        )
        for index in range(window.num_hashes):
            yield replace(turn, index=index)


class Launch:
    """Launches of the kernels of one call without padding."""

    def __init__(self, call: HybridCall) -> None:
        self.call = call
        self.inputs = tuple(
            x if x.stride(-1) == 1 else x.contiguous() for x in (call.query, call.key, call.value)
        )
        self.sinks = min(call.window.sink_tokens, call.key.shape[2])

    def tiling(self, kernel: str, turn: Turn) -> Tiling:
        """Tiles of a kernel in a turn."""
        size = max(_padded(x.shape[3]) for x in (self.call.query, self.call.value))
        return choose_tiling(
            kernel,
            self.call.query.dtype,
            size,
            is_local=turn.is_local,
            drops=self.call.window.dropout > 0.0,
        )

    def sink_sums(self) -> tuple[Tensor, Tensor]:
        """Memory for the gradients of the sinks' keys and values, ``[chunks, B Hkv, S, ..]``."""
        call = self.call
        chunks = -(-call.query.shape[2] * call.group_size // SINK_CHUNK)
        shape = (chunks, call.key.shape[0] * call.key.shape[1], self.sinks)
        key, value = (
            x.new_empty((*shape, x.shape[3]), dtype=torch.float32) for x in (call.key, call.value)
        )
        return key, value

    def run(
        self, kernel: str, function: Any, turn: Turn, results: Sequence[Any], *, sinks: bool = False
    ) -> None:
        """Launch a kernel for a turn.

        Args:
            kernel: ``FORWARD``, ``QUERIES`` or ``KEYS``.
            function: the kernel.
            turn: what it walks over.
            results: its arguments between the inputs and the tables.
            sinks: gradients of the sinks alone, in chunks of the queries (``KEYS``).
        """
        call, window = self.call, self.call.window
        (batch, _, queries, size), groups = call.query.shape, call.key.shape[1]
        tiling, group = self.tiling(kernel, turn), call.group_size
        block = tiling.block
        slots = turn.count * group
        grid: tuple[int, ...]
        if sinks:
            grid = (-(-slots // SINK_CHUNK), batch * groups, -(-self.sinks // block))
        else:
            walked = turn.num_keys if kernel == KEYS else slots
            grid = (-(-walked // block), batch * groups)
        extra = {"SINKS": sinks} if kernel == KEYS else {}
        function[grid](
            *self.inputs,
            *results,
            *turn.tables,
            *(s for x in self.inputs for s in (x.stride(0), x.stride(1), x.stride(2))),
            *(groups, group, queries, call.key.shape[2], self.sinks),
            *(turn.count, call.first_query + turn.start, turn.start, turn.num_keys),
            *(turn.reach, turn.after, min(window.local_window, call.key.shape[2])),
            call.scale * math.log2(math.e),
            fold_seed(window.dropout_seed, 0) & 0x7FFFFFFF,
            fold_seed(window.dropout_seed, 1) & 0x7FFFFFFF,
            int(window.dropout * (1 << 31)),
            1.0 / (1.0 - window.dropout),
            *(call.first_row, *call.query_numbering, turn.index, turn.rounds),
            SIZE=size,
            VALUE_SIZE=call.value.shape[3],
            HEAD=_padded(size),
            VALUE=_padded(call.value.shape[3]),
            BLOCK=block,
            LOCAL=turn.is_local,
            CAUSAL=window.causal,
            DROPOUT=window.dropout > 0.0,
            PRECISION="tf32x3",
            **extra,
            num_warps=tiling.warps,
            num_stages=2,
            # Otherwise the assembler may prefer a spill to a register that halves the occupancy.
            maxnreg=255,
            enable_fp_fusion=True,
        )


def _padded(size: int) -> int:
    """Numbers of a vector in a tile: a power of two."""
    return max(_SMALLEST_BLOCK, 1 << (size - 1).bit_length())
