"""Hashing the rows of a batch, each with a number of buckets of its own.

A row is hashed with the number of buckets for *its* real tokens, so that neither padding nor the
other rows of a batch change anything. The projections depend on that number and on the seed alone,
so rows with equal numbers share them, and a cache that keeps them hashes later tokens alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import (
    HashProjections,
    HashSettings,
    apply_projections,
    choose_num_buckets,
    draw_projections,
    factorize_buckets,
)
from reformer_hf.ops.padding import Padding

# Backends compare ranks spaced by the window between buckets, doubled, as 32-bit integers.
_MAX_SPACED_RANK = 1 << 27

Factors = tuple[int, ...]


def buckets_for_length(length: int, window: AttentionWindow) -> int:
    """Buckets for a sequence of ``length`` real tokens, if the user named no number.

    ``window`` pattern: about ``N / W`` (:func:`~reformer_hf.ops.hashing.choose_num_buckets`).
    ``chunk`` pattern: about ``2 N / C``, the rule of transformers' Reformer.
    """
    if window.pattern == "chunk":
        return choose_num_buckets(2 * -(-length // window.chunk_length), 1)
    return choose_num_buckets(length, max(window.before, window.after))


def factors_of_rows(
    settings: HashSettings, window: AttentionWindow, lengths: Sequence[int]
) -> tuple[Factors, ...]:
    """The factors of every row's number of buckets.

    Args:
        settings: with the number for all rows, or the lengths that it is planned for.
        window: who sees whom.
        lengths: real tokens of every row; the number is chosen for these if it is neither given nor
            planned.

    Raises:
        ValueError: a number that cannot be hashed, or that is too large to sort by.
    """
    lengths = settings.planned_lengths or lengths
    if settings.num_buckets is not None:
        per_row = (factorize_buckets(settings.num_buckets),) * len(lengths)
    else:
        per_row = tuple(factorize_buckets(buckets_for_length(n, window)) for n in lengths)
    most = max(map(math.prod, per_row), default=1)
    reach = max(window.before, window.after)
    reach = min(reach, max(lengths, default=reach))
    if window.pattern == "window" and most * (reach + 1) >= _MAX_SPACED_RANK:
        raise ValueError(
            f"`num_buckets` times the window must be below {_MAX_SPACED_RANK}, "
            f"got {most} buckets and a window of {reach} tokens"
        )
    return per_row


class RowHasher:
    """The hash functions of the rows of a batch.

    Args:
        settings: how to hash.
        per_row: factors of the number of buckets of every row, from :func:`factors_of_rows`.
        num_positions: positions that can be hashed (family ``random`` only).
    """

    def __init__(
        self, settings: HashSettings, per_row: Sequence[Factors], num_positions: int
    ) -> None:
        self.settings = settings
        self.num_positions = num_positions
        self._projections: dict[Factors, HashProjections] = {}
        self.take_rows(per_row)

    @property
    def num_buckets(self) -> int:
        """Buckets of the row that has the most."""
        return max(map(math.prod, self.per_row), default=1)

    def take_rows(self, per_row: Sequence[Factors]) -> None:
        """Hash other rows from now on; projections that were drawn stay as they are."""
        self.per_row = tuple(per_row)
        self._rows_by_factors = {
            factors: [i for i, own in enumerate(self.per_row) if own == factors]
            for factors in sorted(set(self.per_row))
        }

    def _projections_for(self, factors: Factors, vectors: Tensor) -> HashProjections:
        """The hash functions of rows with these factors, drawn when they are needed first."""
        if factors not in self._projections:
            _, heads, _, size = vectors.shape
            self._projections[factors] = draw_projections(
                self.settings,
                factors,
                heads,
                size,
                num_positions=self.num_positions,
                device=vectors.device,
            )
        return self._projections[factors]

    def reach(self, num_positions: int) -> None:
        """Be able to hash more positions; those that could be hashed before hash as before."""
        if self.settings.family == "random" and num_positions > self.num_positions:
            self.num_positions = num_positions
            self._projections.clear()

    def __call__(self, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        """Buckets ``[B, H, R, N]`` int64 of vectors ``[B, H, N, D]``.

        Args:
            vectors: any floating dtype.
            positions: ``[B, N]`` int64 (family ``random`` only; default ``0 .. N-1``).
        """
        if len(self._rows_by_factors) == 1:
            projections = self._projections_for(self.per_row[0], vectors)
            return apply_projections(vectors, projections, positions)
        batch, heads, length, _ = vectors.shape
        shape = (batch, heads, self.settings.num_hashes, length)
        buckets = torch.empty(shape, dtype=torch.int64, device=vectors.device)
        for factors, rows in self._rows_by_factors.items():
            projections = self._projections_for(factors, vectors)
            own = None if positions is None else positions[rows]
            buckets[rows] = apply_projections(vectors[rows], projections, own)
        return buckets

    def hash_real(self, vectors: Tensor, padding: Padding | None) -> tuple[Tensor, int]:
        """Buckets ``[B, H, R, N]`` of whole sequences, and a number above all of them.

        Padding is in a bucket of its own, behind those of real tokens.
        """
        if padding is None:
            return self(vectors), self.num_buckets
        buckets = self(vectors, padding.positions())
        buckets = torch.where(padding.real[:, None, None, :], buckets, self.num_buckets)
        return buckets, self.num_buckets + 1
