"""Heads that are some of a layer's, while others are computed elsewhere.

What a head draws (hash projections, the pairs that dropout drops) depends on its number in the
layer, so that it does not matter where it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadShare:
    """Which of a layer's heads a call holds.

    Attributes:
        first: number of the call's first head in the layer.
        total: heads of the layer.
    """

    first: int
    total: int


def numbering(share: HeadShare | None, heads: int) -> tuple[int, int]:
    """The number of a call's first head, and the heads of its layer.

    Args:
        share: which heads the call holds; ``None``: all.
        heads: of the call.
    """
    return (0, heads) if share is None else (share.first, share.total)


def as_numbers(share: HeadShare | None) -> tuple[int, int]:
    """In the form of an operator's schema, in which all heads are 0 of 0."""
    return (0, 0) if share is None else (share.first, share.total)


def from_numbers(first: int, total: int) -> HeadShare | None:
    """The inverse of :func:`as_numbers`."""
    return HeadShare(first, total) if total else None
