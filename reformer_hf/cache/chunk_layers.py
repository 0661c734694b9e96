"""Cache layers of the original ``chunk`` pattern: approximate, as transformers' own cache is.

In this pattern a later token moves the borders of chunks, and with them what earlier tokens see, so
that no cache of earlier results can be exact. These keep what a token was when it came, like
transformers' Reformer, for checkpoints that were trained that way.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.lsh_layer import HashedCacheLayer
from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_layer import TokenCacheLayer
from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.chunk_decoding import attend_in_chunks
from reformer_hf.ops.precision import widen
from reformer_hf.ops.shared_keys import normalize_keys


class _ChunkCacheLayer(TokenCacheLayer):
    """What both kinds share: all tokens stay, and new ones are read one after the other."""

    def _store(self, **new: Tensor) -> None:
        """Store new tokens ``[B, H, n, ..]``.

        Raises:
            ValueError: padding among them.
        """
        time = self.timeline
        if not time.uniform:
            raise ValueError(
                "`attention_mask` must be full for an approximate cache of the 'chunk' pattern, "
                f"got {min(time.coming_lengths)} real tokens of {time.coming}; decode rows of "
                "different length without a cache, or one by one"
            )
        super()._store(**new)


class ChunkLocalCacheLayer(_ChunkCacheLayer):
    """Keys and values of a local layer."""

    _layer_type = "reformer_chunk_local"

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens to their chunk so far and the chunks before it."""
        del backend
        self.store(key, value)
        parts = []
        for i in range(query.shape[2]):
            last = self.timeline.ends[0] + i
            start = max(0, (last // window.chunk_length - window.before) * window.chunk_length)
            held = slice(start, last + 1)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, i : i + 1],
                    self.keys[:, :, held],
                    self.values[:, :, held],
                    dropout_p=window.dropout,
                )
            )
        return torch.cat(parts, dim=2)


class ChunkLSHCacheLayer(HashedCacheLayer, _ChunkCacheLayer):
    """Normalised keys, values and buckets of an LSH layer."""

    _layer_type = "reformer_chunk_lsh"

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self._hashed_from: int | None = None

    def store(self, query_key: Tensor, value: Tensor) -> None:
        """Store tokens ``[B, H, n, D]``."""
        buckets = self._hash(query_key).transpose(2, 3)
        self._store(keys=normalize_keys(query_key), values=value, buckets=buckets)
        if self._hashed_from is None:
            # The original hashes a prompt of more than one chunk at once; a shorter one when a
            # later token completes the first chunk, and uses that for the token after it.
            chunk, new = self._opened().window.chunk_length, query_key.shape[2]
            end = self.timeline.ends[0] + new
            self._hashed_from = end if new > chunk else max(chunk, end + 1)

    def attend(
        self, query_key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens to the chunks around their places among the tokens so far."""
        del backend
        self.store(query_key, value)
        parts = []
        for i in range(query_key.shape[2]):
            last = self.timeline.ends[0] + i
            query, held = query_key[:, :, i : i + 1], slice(0, last + 1)
            keys, values = self.keys[:, :, held], self.values[:, :, held]
            if self._hashed_from is None or last < self._hashed_from:
                parts.append(_attend_to_all(query, keys, values, window.dropout))
                continue
            buckets = self.buckets[:, :, held].transpose(2, 3).to(torch.int64)
            num_buckets = self._opened().num_buckets
            parts.append(
                attend_in_chunks(
                    query, keys, values, buckets, num_buckets=num_buckets, window=window
                )
            )
        return torch.cat(parts, dim=2)

    def reset(self) -> None:
        super().reset()
        self._hashed_from = None


def _attend_to_all(query: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """Attention of the last token to all, to itself if there are no others."""
    scores = widen(torch.matmul(query, keys.transpose(-1, -2)))
    scores[..., -1] = SELF_SCORE
    return torch.matmul(F.dropout(scores.softmax(dim=-1), dropout).to(values.dtype), values)
