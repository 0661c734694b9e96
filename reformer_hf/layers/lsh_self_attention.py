"""Self-attention among tokens that hash alike."""

from __future__ import annotations

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.cache.chunk_layers import ChunkLSHCacheLayer
from reformer_hf.cache.lsh_layer import LSHCacheLayer
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import PassShape
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.lsh_attention import lsh_attention, lsh_attention_weights
from reformer_hf.ops.seeds import fold_seed


class LSHSelfAttention(SelfAttention):
    """LSH attention with shared queries and keys; see :func:`~reformer_hf.ops.lsh_attention`."""

    kind = "lsh"

    def add_projections(self) -> None:
        self.query_key = self._projection()
        self.value = self._projection()

    def project(self, normed: Tensor) -> tuple[Tensor, ...]:
        return self.query_key(normed), self.value(normed)

    def _rounds(self, shape: PassShape) -> int:
        return shape.num_hashes or self.config.num_hashes

    def _hashing(self, context: ForwardContext) -> HashSettings:
        """How this layer hashes in this pass."""
        config = self.config
        # The original draws the same rotations in every layer; ours differ from layer to layer.
        shared = config.attention_pattern == "chunk"
        return HashSettings(
            num_hashes=context.num_hashes or config.num_hashes,
            seed=context.hash_seed if shared else fold_seed(context.hash_seed, self.layer_index),
            num_buckets=context.num_buckets or config.num_buckets,
            family=config.hash_family,
            bucket_width=config.hash_bucket_width,
            planned_lengths=context.planned_lengths,
            heads=context.head_share(self.num_heads),
        )

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """LSH attention of ``query_key`` and ``value`` heads."""
        query_key, value = heads
        hashing, window = self._hashing(context), self._window(context)
        padding, backend = context.padding, self.config.attention_backend
        return lsh_attention(
            query_key, value, hashing, window=window, padding=padding, backend=backend
        )[0]

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The merged weights of all rounds."""
        query_key, value = heads
        hashing, window = self._hashing(context), self._window(context)
        return lsh_attention_weights(
            query_key, value, hashing, window=window, padding=context.padding
        )

    def attend_with_cache(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """LSH attention; in the window pattern one sort serves the first tokens and their rings."""
        if self.config.attention_pattern == "window":
            return self.attend_to_cached(cache, context, *heads)
        return super().attend_with_cache(cache, context, *heads)

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """LSH attention to the last tokens of each bucket, those in the cache among them."""
        layer, window = self._cache_layer(cache, context)
        return layer.attend(*heads, window=window, backend=self.config.attention_backend)

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put queries that are keys, and values, into the cache."""
        layer, _ = self._cache_layer(cache, context)
        layer.store(*cache.timeline.coming_part(*heads))

    def _cache_layer(
        self, cache: ReformerCache, context: ForwardContext
    ) -> tuple[LSHCacheLayer | ChunkLSHCacheLayer, AttentionWindow]:
        layer = cache.lsh_layer(self.layer_index)
        hashing = layer.hashing
        if hashing is not None and hashing.window.dropout == 0.0 and not self.training:
            return layer, hashing.window
        window = self._window(context)
        if hashing is None:
            layer.open(self._hashing(context), window)
        return layer, window
