"""Sorted queries against sorted keys, without a square: the staircase.

The keys of a round are sorted by ``(bucket, position)``; the *cursor* of a query is the number of
keys that stand before the place where it would be inserted, at the edge of its local window. The
keys that it may see are the ``W`` in front of its cursor, as far as they are in its bucket. With
ranks spaced by ``W`` between buckets both are one comparison:

    ``0 <= place(i) - place(j) < W``,
    ``place(i) = cursor - 1 + W b_i``, ``place(j) = rank + W b_j``.

The sorted keys are cut into blocks of ``T``. The queries whose cursor ends in the same block form
tiles of at most ``C``, which need the keys of that block and of ``h = ceil(W / T)`` blocks before
it. So ``M`` queries over ``N`` keys make at most ``M / C + N / T`` tiles, whatever the buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_MIN_BLOCK, _MAX_BLOCK = 32, 128
TILE = 64


@dataclass(frozen=True)
class Places:
    """Where queries and keys stand in the sorted keys of all rounds.

    Attributes:
        key_order: ``[R, N]`` int64, the key at every rank.
        cursor: ``[R, Q]`` int64, keys in front of a query's place.
        key_place: ``[R, N]``, spaced rank of a key, in the dtype of scores.
        query_place: ``[R, Q]``, likewise of a query, less ``(W - 1) / 2``: a query sees a key iff
            their places are at most ``(W - 1) / 2`` apart.
        reach: ``W``.
    """

    key_order: Tensor
    cursor: Tensor
    key_place: Tensor
    query_place: Tensor
    reach: int


def sort_keys(
    query_buckets: Tensor,
    key_buckets: Tensor,
    query_position: Tensor,
    local_window: int,
    *,
    ahead: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the keys of every round and find the queries' cursors.

    Args:
        query_buckets: ``[.., R, Q]`` int64.
        key_buckets: ``[.., R, N]`` int64; key ``j`` stands at position ``j``.
        query_position: ``[Q]`` int64.
        local_window: a query looks up keys that are at least so far away.
        ahead: look ahead instead of back: the same with all positions counted from the end.

    Returns:
        The key at every rank and the rank of every key, ``[.., R, N]``, and the number of keys in
        front of a query's place, ``[.., R, Q]``, all int64.
    """
    length = key_buckets.shape[-1]
    position = torch.arange(length, device=key_buckets.device)
    if ahead:
        position, query_position = length - 1 - position, length - 1 - query_position
    codes = (key_buckets * length + position).contiguous()
    in_order, key_order = codes.sort(dim=-1)
    edge = (query_position - local_window).clamp(min=-1)
    cursor = torch.searchsorted(in_order, (query_buckets * length + edge).contiguous(), right=True)
    rank = torch.arange(length, device=key_order.device).expand_as(key_order)
    key_rank = torch.empty_like(key_order).scatter_(-1, key_order, rank)
    return key_order, key_rank, cursor


def find_places(
    query_buckets: Tensor,
    key_buckets: Tensor,
    query_position: Tensor,
    *,
    local_window: int,
    reach: int,
    ahead: bool,
    dtype: torch.dtype,
) -> Places:
    """Where the queries and keys of one key-value head stand in all rounds.

    Args:
        query_buckets, key_buckets, query_position, local_window, ahead: as for :func:`sort_keys`,
            without dimensions before ``R``.
        reach: keys per round, ``W``.
        dtype: of scores (fp32 holds places up to 2**23 exactly; above, fp64 is taken).
    """
    length = key_buckets.shape[-1]
    key_order, key_rank, cursor = sort_keys(
        query_buckets, key_buckets, query_position, local_window, ahead=ahead
    )
    key_place = key_rank + reach * key_buckets
    query_place = cursor - 1 + reach * query_buckets
    if dtype == torch.float32 and length + reach * (int(key_buckets.max()) + 1) >= 1 << 23:
        dtype = torch.float64
    query_place = query_place.to(dtype) - (reach - 1) / 2
    return Places(key_order, cursor, key_place.to(dtype), query_place, reach)


@dataclass(frozen=True)
class Staircase:
    """The tiles of one round.

    Slots are counted through all tiles, ``C`` each; slots without a query hold query 0 at a place
    from which it sees nothing.

    Attributes:
        block: ``T``, keys of a block.
        lookback: ``h``, blocks before the own one that a tile needs.
        block_of_tile: ``[tiles]`` int64, the first of the ``h + 1`` blocks of a tile, counted in
            ``h`` empty blocks followed by those of the keys.
        query_of_slot: ``[tiles * C]`` int64.
        filled: ``[tiles * C]`` bool, whether a slot has a query.
        slot_of_query: ``[Q]`` int64.
        key_of_slot: ``[(h + blocks) * T]`` int64, the key in every slot of the blocks, 0 in empty
            ones.
        filled_keys: ``[(h + blocks) * T]`` bool.
    """

    block: int
    lookback: int
    block_of_tile: Tensor
    query_of_slot: Tensor
    filled: Tensor
    slot_of_query: Tensor
    key_of_slot: Tensor
    filled_keys: Tensor

    @property
    def num_keys(self) -> int:
        """Key slots of a tile, ``K``."""
        return (self.lookback + 1) * self.block


def build_staircase(places: Places, index: int) -> Staircase:
    """Tiles of the round ``index``."""
    length, reach = places.key_order.shape[-1], places.reach
    block = min(_MAX_BLOCK, max(_MIN_BLOCK, 1 << (reach - 1).bit_length()))
    lookback, blocks = -(-reach // block), -(-length // block)

    # The queries, in the order of the blocks in which their cursors end.
    block_of_query = (places.cursor[index] - 1).clamp_(min=0) // block
    ordered, order = block_of_query.sort()
    count = torch.bincount(block_of_query, minlength=blocks)
    tiles = (count + TILE - 1) // TILE
    # A block's queries and tiles stand behind those of the blocks before it.
    first = count.cumsum(0) - count
    first_slot = (tiles.cumsum(0) - tiles) * TILE
    number = torch.arange(order.shape[0], device=order.device)
    slot = number + (first_slot - first)[ordered]

    block_of_tile = torch.repeat_interleave(torch.arange(blocks, device=order.device), tiles)
    slots = block_of_tile.shape[0] * TILE
    query_of_slot = order.new_zeros(slots)
    query_of_slot[slot] = order
    filled = torch.zeros(slots, dtype=torch.bool, device=order.device)
    filled[slot] = True
    slot_of_query = torch.empty_like(order)
    slot_of_query[order] = slot

    tail = (lookback * block, blocks * block - length)
    key_of_slot = pad(places.key_order[index], tail)
    filled_keys = pad(torch.ones_like(places.key_order[index], dtype=torch.bool), tail)
    return Staircase(
        block,
        lookback,
        block_of_tile,
        query_of_slot,
        filled,
        slot_of_query,
        key_of_slot,
        filled_keys,
    )
