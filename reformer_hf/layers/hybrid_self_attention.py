"""Self-attention to sinks, a local window and bucket mates, in one softmax."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.self_attention import QueryKeyValueAttention
from reformer_hf.ops.hybrid_attention import (
    HybridWindow,
    hybrid_attention,
    hybrid_attention_weights,
)
from reformer_hf.ops.hybrid_attention.torch_backend import bytes_at_work
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.seeds import fold_seed


def _real(padding: Padding | None) -> Tensor | None:
    """``[B, N]`` bool, or ``None`` if all tokens are real."""
    return None if padding is None else padding.real


class HybridSelfAttention(QueryKeyValueAttention):
    """Queries and keys apart; see :func:`~reformer_hf.ops.hybrid_attention.hybrid_attention`.

    With the cache, which keeps all tokens as for full attention, a step hashes all keys again and
    gives what one pass over all tokens gives.
    """

    rotary = True

    def draws(self) -> bool:
        dropout = self.config.hybrid_attention_probs_dropout_prob
        return super().draws() or (self.training and dropout > 0.0)

    def _hybrid_window(self, context: ForwardContext) -> HybridWindow:
        config = self.config
        buckets = context.num_buckets or config.num_buckets
        return HybridWindow(
            local_window=config.local_attn_chunk_length * config.local_num_chunks_before + 1,
            sink_tokens=config.sink_tokens,
            num_hashes=context.num_hashes or config.num_hashes,
            bucket_window=config.lsh_attn_chunk_length * config.lsh_num_chunks_before,
            num_buckets=math.prod(buckets) if isinstance(buckets, list) else buckets,
            hash_seed=fold_seed(context.hash_seed, self.layer_index),
            causal=self.causal,
            dropout=config.hybrid_attention_probs_dropout_prob if self.training else 0.0,
            dropout_seed=context.dropout_seed + self.layer_index,
            heads=context.head_share(self.num_heads),
        )

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Hybrid attention of ``query``, ``key`` and ``value`` heads."""
        window, backend = self._hybrid_window(context), self.config.attention_backend
        query, key, value = heads
        return hybrid_attention(
            query, key, value, window, real=_real(context.padding), backend=backend
        )[0]

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The attention weights of the union."""
        window = self._hybrid_window(context)
        query, key, _ = heads
        return hybrid_attention_weights(query, key, window, real=_real(context.padding))

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """Hybrid attention to all tokens in the cache and the new ones."""
        window, backend = self._hybrid_window(context), self.config.attention_backend
        query, key, value = heads
        uniform = cache.timeline.uniform
        keys, values, real = cache.full_layer(self.layer_index).read_with(key, value)
        some = None if uniform else real
        return hybrid_attention(query, keys, values, window, real=some, backend=backend)[0]

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put keys and values into the cache."""
        del context
        cache.full_layer(self.layer_index).store(*cache.timeline.coming_part(*heads[1:]))

    def footprint(self, shape: PassShape) -> Footprint:
        """Bytes of a pass: as in full attention, and what the walk over tiles works with."""
        found = super().footprint(shape)
        working = bytes_at_work(shape.length * shape.ranks, self.config.attention_head_size)
        return replace(found, working=found.working + working)
