"""Sorting tokens by bucket, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.padding import Padding
from reformer_hf.ops.triton_support import usable_on


@dataclass(frozen=True)
class BucketOrder:
    """The order of tokens after sorting by bucket, one permutation per round.

    ``H'`` and ``B'`` are ``H`` and ``B``, or 1 where heads or rows share the order.

    Attributes:
        order: ``[B', H', R, N]`` int64; ``order[.., s]`` is the token at sorted slot ``s``.
        rank: ``[B', H', R, N]`` int64; ``rank[.., i]`` is the sorted slot of token ``i``
            (the inverse permutation of ``order``).
        bucket: ``[B', H', R, N]`` int64; the bucket of token ``i``.
    """

    order: Tensor
    rank: Tensor
    bucket: Tensor

    @property
    def num_hashes(self) -> int:
        """Rounds, ``R``."""
        return self.order.shape[2]


@torch.no_grad()
def sort_by_bucket(buckets: Tensor, num_buckets: int | None = None) -> BucketOrder:
    """Sort tokens by ``(bucket, position)``.

    No two tokens have the same key, so the order is the same on every device. On CUDA a counting
    sort finds it, if the number of buckets is known.

    Args:
        buckets: ``[B, H, R, N]`` int64, not negative. Padding belongs in a bucket above all real
            ones: it then sorts last and shares a bucket with no real token.
        num_buckets: a number above all buckets, that of padding included; ``None``: not known
            without reading them.

    Returns:
        The order, its inverse, and the buckets.
    """
    if num_buckets is not None and usable_on(buckets.device):
        from reformer_hf.ops import triton_sort

        if triton_sort.fits(buckets, num_buckets):
            return BucketOrder(*triton_sort.sort_tokens(buckets, num_buckets), buckets)
    length = buckets.shape[-1]
    position = torch.arange(length, device=buckets.device)
    order = (buckets * length + position).sort(dim=-1).values.remainder_(max(1, length))
    return BucketOrder(order, invert_permutation(order), buckets)


def padding_order(padding: Padding | None) -> BucketOrder | None:
    """The order of the sequence with padding moved behind, shared by all heads (one round)."""
    if padding is None:
        return None
    return sort_by_bucket((~padding.real).to(torch.int64)[:, None, None, :], num_buckets=2)


def identity_order(length: int, device: torch.device) -> BucketOrder:
    """The order of the sequence itself: one round, one bucket, shared by all rows and heads."""
    slots = torch.arange(length, device=device).view(1, 1, 1, length)
    return BucketOrder(slots, slots, torch.zeros_like(slots))


def invert_permutation(order: Tensor) -> Tensor:
    """The inverse along the last dimension: ``inverse[order[s]] = s``; ``[.., N]`` int64."""
    slots = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, slots)


def spaced_rank(order: BucketOrder, spacing: int) -> Tensor:
    """Ranks with a gap of ``spacing`` between buckets: ``rank + spacing * bucket``.

    Two tokens of one bucket keep their distance in rank; two tokens of different buckets are more
    than ``spacing`` apart. "In the same bucket and at most ``W <= spacing`` slots apart" is then
    one subtraction and one comparison.

    Returns:
        ``[B', H', R, N]`` int64, indexed by token.
    """
    return order.rank + order.bucket * spacing
