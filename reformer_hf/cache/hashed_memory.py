"""Memory of tokens with the bucket of each, by hash functions that stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.cache.token_memory import TokenMemory
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.row_hashing import RowHasher


class HashedMemory(TokenMemory):
    """Normalised keys, values and buckets of a layer with LSH attention.

    Attributes:
        buckets: ``[B, H, capacity, R]``.
        hasher: the hash functions, which stay the same for as long as the memory lives.
        sight: who sees whom, as the first call had it.
    """

    buckets: Tensor
    hasher: RowHasher
    sight: AttentionWindow

    def start_hashing(
        self,
        query_key: Tensor,
        value: Tensor,
        window: AttentionWindow,
        hasher: RowHasher,
        *,
        rounds: int,
        dtype: torch.dtype,
    ) -> None:
        """Make room when the first tokens ``[B, H, n, D]`` come; buckets are kept as ``dtype``."""
        self.lazy_initialization(query_key, value)
        self.hasher, self.sight = hasher, window
        self.buckets = torch.zeros(
            (*query_key.shape[:2], 0, rounds), dtype=dtype, device=query_key.device
        )

    def hash_coming(self, query_key: Tensor) -> Tensor:
        """Buckets ``[B, H, R, n]`` int64 of the coming tokens ``[B, H, n, D]``."""
        positions = None
        if self.hasher.settings.family == "random":
            positions = self.timeline.coming_positions()
            self.hasher.reach(int(positions.max()) + 1)
        return self.hasher(query_key, positions)

    def _buffers(self) -> dict[str, Tensor]:
        return {**super()._buffers(), "buckets": self.buckets}

    def take_rows(self, rows: Tensor) -> None:
        """See the base class."""
        super().take_rows(rows)
        if self.is_initialized:
            self.hasher.take_rows([self.hasher.per_row[i] for i in rows.tolist()])
