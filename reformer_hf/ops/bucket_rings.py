"""The last ``W`` tokens of every bucket: all that a causal token of the ``window`` pattern can see.

A token sees the last ``W`` earlier tokens of its own bucket. Which these are is kept, per bucket,
as a ring of ``W`` positions: the ``k``-th token of a bucket stands in slot ``k mod W``, so a new
token replaces the one that nobody can see any more. Reading what a token sees costs ``W`` positions
per round, however long the sequence is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.sorting import BucketOrder

# What stands in a slot that holds no token yet.
EMPTY = -1


@dataclass
class BucketRings:
    """Rings of all buckets.

    Attributes:
        entries: ``[B, H, R, nb, W]`` int32, positions of tokens, or ``EMPTY``.
        counts: ``[B, H, R, nb]`` int32, tokens that a bucket has had so far.
    """

    entries: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        batch, heads, rounds, num_buckets, self.window = self.entries.shape
        first = torch.arange(batch * heads * rounds, device=self.entries.device) * num_buckets
        self._first = first.view(batch, heads, rounds, 1)

    def ring_of(self, buckets: Tensor) -> Tensor:
        """Numbers ``[B, H, R, n]`` of the rings of buckets ``[B, H, R, n]``, among all rings."""
        return buckets + self._first

    def positions(self, ring: Tensor) -> Tensor:
        """Entries ``[B, H, n, R W]`` int32 of rings ``[B, H, R, n]``: positions, or ``EMPTY``."""
        entries = self.entries.view(-1, self.window).index_select(0, ring.flatten())
        return entries.view(*ring.shape, -1).transpose(2, 3).flatten(3)

    def counts_of(self, ring: Tensor) -> Tensor:
        """Counts ``[B, H, R, n]`` int32 of rings ``[B, H, R, n]``."""
        return self.counts.view(-1).index_select(0, ring.flatten()).view(ring.shape)


@dataclass(frozen=True)
class RingChange:
    """What appending tokens to rings replaced, so that it can be taken back.

    Attributes:
        ring: ``[B, H, R, n]`` int64, the rings.
        slots: ``[B, H, R, n]`` int64, numbers of the slots among all slots.
        replaced: ``[B, H, R, n]`` int32, what stood there.
    """

    ring: Tensor
    slots: Tensor
    replaced: Tensor

    @property
    def length(self) -> int:
        """Tokens, ``n``."""
        return self.ring.shape[-1]

    def split(self, length: int) -> tuple[RingChange, RingChange]:
        """The changes by the first ``length`` tokens and by the others."""
        parts = [(x[..., :length], x[..., length:]) for x in (self.ring, self.slots, self.replaced)]
        return RingChange(*(p[0] for p in parts)), RingChange(*(p[1] for p in parts))


def empty_rings(shape: Sequence[int], device: torch.device) -> BucketRings:
    """Rings without tokens, of shape ``[B, H, R, nb, W]``."""
    return BucketRings(
        torch.full(tuple(shape), EMPTY, dtype=torch.int32, device=device),
        torch.zeros(tuple(shape[:-1]), dtype=torch.int32, device=device),
    )


def rings_from_order(
    order: BucketOrder, position: Tensor | None, shape: Sequence[int]
) -> BucketRings:
    """The rings after all tokens of a sorted order; no loop over tokens.

    With ``start_c`` the first sorted slot of bucket ``c`` and ``count_c`` its tokens, slot ``w`` of
    its ring holds the token with number ``k = count_c - 1 - ((count_c - 1 - w) mod W)`` of the
    bucket, if that is not negative.

    Args:
        order: tokens sorted by bucket and position; padding in buckets from ``num_buckets`` on.
        position: ``[B, N]`` int64, the position of every token; ``None``: its index.
        shape: ``[B, H, R, nb, W]``.
    """
    *full, num_buckets, window = shape
    device = order.order.device
    bucket = order.bucket.clamp(max=num_buckets)
    counts = bucket.new_zeros((*bucket.shape[:3], num_buckets + 1))
    counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
    start = (counts.cumsum(-1) - counts)[..., :num_buckets, None]
    counts = counts[..., :num_buckets]
    last = counts.unsqueeze(-1) - 1
    number = last - (last - torch.arange(window, device=device)).remainder(window)
    sorted_slot = (start + number).clamp_(0, order.order.shape[-1] - 1)
    index = order.order.gather(-1, sorted_slot.flatten(3))
    if position is not None:
        where = position[:, None, None, :].expand(-1, *index.shape[1:3], -1)
        index = where.gather(-1, index.expand(position.shape[0], -1, -1, -1))
    entries = index.unflatten(-1, (num_buckets, window))
    entries = torch.where(number >= 0, entries, EMPTY).to(torch.int32)
    counts = counts.to(torch.int32).expand(*full, num_buckets)
    return BucketRings(entries.expand(*shape).contiguous(), counts.contiguous())


def append_to_rings(
    rings: BucketRings, ring: Tensor, earlier: Tensor, positions: Tensor, keep_replaced: bool
) -> RingChange | None:
    """Put new tokens into the rings of their buckets, in place.

    Args:
        rings: the rings of all buckets.
        ring: ``[B, H, R, n]`` int64 from :meth:`BucketRings.ring_of`; at most ``W`` tokens.
        earlier: ``[B, H, R, n]`` int64, how many of the ``n`` tokens stand in the same bucket
            before each.
        positions: ``[B, n]`` int64.
        keep_replaced: return what is needed to take the tokens out again.
    """
    number = rings.counts_of(ring) + earlier
    slots = number.remainder_(rings.window).add_(ring, alpha=rings.window)
    entries = rings.entries.view(-1)
    change = RingChange(ring, slots, entries[slots]) if keep_replaced else None
    new = positions.to(torch.int32)[:, None, None, :].expand_as(ring)
    entries.index_copy_(0, slots.flatten(), new.flatten())
    _count(rings, ring, 1)
    return change


def append_newest(rings: BucketRings, ring: Tensor, position: Tensor | int) -> None:
    """:func:`append_to_rings` for one token of every row, in fewer operations.

    Args:
        rings: the rings of all buckets.
        ring: ``[B, H, R, 1]`` int64.
        position: ``[B, 1, 1, 1]`` int64, or one number for all rows.
    """
    entries, counts = rings.entries.view(-1), rings.counts.view(-1)
    flat = ring.view(-1)
    number = counts.index_select(0, flat)
    slots = number.remainder(rings.window).add(flat, alpha=rings.window)
    if isinstance(position, int):
        entries.index_fill_(0, slots, position)
    else:
        entries.index_copy_(0, slots, position.to(torch.int32).expand(ring.shape).flatten())
    counts.index_copy_(0, flat, number + 1)


def take_back(rings: BucketRings, change: RingChange) -> None:
    """Undo :func:`append_to_rings`, in place; the latest change first."""
    rings.entries.view(-1).index_copy_(0, change.slots.flatten(), change.replaced.flatten())
    _count(rings, change.ring, -1)


def _count(rings: BucketRings, ring: Tensor, change: int) -> None:
    """Add to the count of the bucket of every token of ``ring`` ``[B, H, R, n]``."""
    flat, counts = ring.flatten(), rings.counts.view(-1)
    counts.index_add_(0, flat, torch.full_like(flat, change, dtype=counts.dtype))
