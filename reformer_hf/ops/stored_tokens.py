"""The tokens that an LSH layer has stored, and those that come in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reformer_hf.ops.bucket_rings import BucketRings


@dataclass(frozen=True)
class NewTokens:
    """``n`` new tokens of every row.

    Attributes:
        query: ``[B, H, n, D]``.
        key: ``[B, H, n, D]``, normalised.
        value: ``[B, H, n, D]``.
        buckets: ``[B, H, R, n]`` int64.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    buckets: Tensor

    def part(self, start: int, length: int) -> NewTokens:
        """At most ``length`` of them, from ``start`` on."""
        tokens = slice(start, start + length)
        query, key, value = (x[:, :, tokens] for x in (self.query, self.key, self.value))
        return NewTokens(query, key, value, self.buckets[..., tokens])


@dataclass(frozen=True)
class StoredTokens:
    """Buffers of tokens, found by position.

    Attributes:
        keys: ``[B, H, capacity, D]``, normalised.
        values: ``[B, H, capacity, D]``.
        buckets: ``[B, H, capacity, R]``.
        rings: the positions of the last tokens of every bucket.
        first: the oldest position that is stored: ``[B, 1, 1, 1]`` int64, or one number for all.
        modulus: token ``p`` stands at ``p mod modulus``; ``None``: at ``p``.
        base: ``[B, H, 1, 1]`` int64, where a row and head begins if they are laid end to end.
    """

    keys: Tensor
    values: Tensor
    buckets: Tensor
    rings: BucketRings
    first: Tensor | int
    modulus: int | None
    base: Tensor

    def index(self, positions: Tensor) -> Tensor:
        """Where the tokens at positions ``[B, H, n, m]`` stand, for :func:`gather`; int64."""
        if self.modulus is not None:
            positions = positions.remainder(self.modulus)
        return positions + self.base


def gather(buffer: Tensor, index: Tensor) -> Tensor:
    """Entries ``[B, H, n, m, D]`` of a buffer ``[B, H, capacity, D]`` of :class:`StoredTokens`."""
    size = buffer.shape[-1]
    return buffer.view(-1, size).index_select(0, index.flatten()).view(*index.shape, size)
