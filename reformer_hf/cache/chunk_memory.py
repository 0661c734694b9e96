"""Memories of layers in the original ``chunk`` pattern: approximate, as transformers' own is.

In this pattern a later token moves the borders of chunks, and with them what earlier tokens see, so
that no memory of earlier results can be exact. These keep what a token was when it came, like
transformers' Reformer, for checkpoints that were trained that way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.hashed_memory import HashedMemory
from reformer_hf.cache.token_memory import TokenMemory
from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.chunk_decoding import attend_in_chunks
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.row_hashing import Factors, RowHasher
from reformer_hf.ops.shared_keys import normalize_keys


class _ChunkMemory(TokenMemory):
    """What both kinds share: all tokens stay, and new ones are read one after the other."""

    def _take_in(self, **new: Tensor) -> int:
        """Store new tokens ``[B, H, n, ..]``; how many there were before.

        Raises:
            ValueError: padding among them.
        """
        time = self.timeline
        if not time.uniform:
            raise ValueError(
                "`attention_mask` must be full for an approximate memory of the 'chunk' pattern, "
                f"got {min(time.coming_lengths)} real tokens of {time.coming}; decode rows of "
                "different length without memory, or one by one"
            )
        self.prepare(new["keys"], new["values"])
        self.write(**new)
        return time.ends[0]


class ChunkLocalMemory(_ChunkMemory):
    """Keys and values of a local layer."""

    _layer_type = "reformer_chunk_local"

    def remember(self, key: Tensor, value: Tensor) -> None:
        """Store keys and values ``[B, H, n, D]``."""
        self._take_in(keys=key, values=value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens to their chunk so far and the chunks before it."""
        del backend
        past = self._take_in(keys=key, values=value)
        parts = []
        for i in range(query.shape[2]):
            start = (
                max(0, ((past + i) // window.chunk_length - window.before)) * window.chunk_length
            )
            held = slice(start, past + i + 1)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, i : i + 1],
                    self.keys[:, :, held],
                    self.values[:, :, held],
                    dropout_p=window.dropout,
                )
            )
        return torch.cat(parts, dim=2)


class ChunkLSHMemory(HashedMemory, _ChunkMemory):
    """Normalised keys, values and buckets (int32) of an LSH layer."""

    _layer_type = "reformer_chunk_lsh"

    def start(
        self,
        query_key: Tensor,
        value: Tensor,
        window: AttentionWindow,
        settings: HashSettings,
        per_row: Sequence[Factors],
    ) -> None:
        """Fix the hash functions and make room, when the first tokens ``[B, H, n, D]`` come."""
        hasher = RowHasher(settings, per_row, num_positions=self.planned_capacity)
        self.start_hashing(
            query_key, value, window, hasher, rounds=settings.num_hashes, dtype=torch.int32
        )
        self._hashed_from: int | None = None

    def remember(self, query_key: Tensor, value: Tensor) -> None:
        """Store tokens ``[B, H, n, D]``."""
        buckets = self.hash_coming(query_key).transpose(2, 3)
        past = self._take_in(keys=normalize_keys(query_key), values=value, buckets=buckets)
        if self._hashed_from is None:
            # The original hashes a prompt of more than one chunk at once; a shorter one when a
            # later token completes the first chunk, and uses that for the token after it.
            chunk, new = self.sight.chunk_length, query_key.shape[2]
            self._hashed_from = past + new if new > chunk else max(chunk, past + new + 1)

    def attend(
        self, query_key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens to the chunks around their places among the tokens so far."""
        del backend
        past = self.timeline.ends[0]
        self.remember(query_key, value)
        parts = []
        for i in range(query_key.shape[2]):
            query, held = query_key[:, :, i : i + 1], slice(0, past + i + 1)
            keys, values = self.keys[:, :, held], self.values[:, :, held]
            if self._hashed_from is None or past + i < self._hashed_from:
                parts.append(_attend_to_all(query, keys, values, window.dropout))
                continue
            parts.append(
                attend_in_chunks(
                    query,
                    keys,
                    values,
                    self.buckets[:, :, held].transpose(2, 3).to(torch.int64),
                    num_buckets=self.hasher.num_buckets,
                    chunk_length=window.chunk_length,
                    before=window.before,
                    after=window.after,
                    dropout=window.dropout,
                )
            )
        return torch.cat(parts, dim=2)


def _attend_to_all(query: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """Attention of the last token to all, to itself if there are no others."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).to(
        torch.float64 if query.dtype == torch.float64 else torch.float32
    )
    scores[..., -1] = SELF_SCORE
    return torch.matmul(F.dropout(scores.softmax(dim=-1), dropout).to(values.dtype), values)
