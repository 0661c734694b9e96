"""Self-attention among tokens that hash alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.cache.chunk_memory import ChunkLSHMemory
from reformer_hf.cache.lsh_memory import LSHMemory
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.ops.lsh_attention import lsh_attention, lsh_attention_weights
from reformer_hf.ops.row_hashing import HashSettings, factors_of_rows
from reformer_hf.ops.seeds import fold_seed
from reformer_hf.ops.windowed_attention import AttentionWindow


class LSHSelfAttention(SelfAttention):
    """LSH attention with shared queries and keys; see :func:`~reformer_hf.ops.lsh_attention`."""

    projections = ("query_key", "value")

    def size_of_results(self) -> int:
        """The output of the heads, two sums of each, and per round three numbers of the order."""
        config = self.config
        return self.num_heads * (4 * config.attention_head_size + 8 + 12 * config.num_hashes)

    def _arguments(self, context: ForwardContext) -> dict[str, Any]:
        config = self.config
        # The original draws the same rotations in every layer; ours differ from layer to layer.
        shared = config.attention_pattern == "chunk"
        seed = context.hash_seed if shared else fold_seed(context.hash_seed, self.layer_index)
        return {
            "window": self._window("lsh", context, exclude_self=True),
            "num_hashes": context.num_hashes or config.num_hashes,
            "num_buckets": context.num_buckets or config.num_buckets,
            "hash_seed": seed,
            "hash_family": config.hash_family,
            "bucket_width": config.hash_bucket_width,
            "padding": context.padding,
            "planned_lengths": context.planned_lengths,
        }

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """LSH attention of ``query_key`` and ``value`` heads."""
        out, _ = lsh_attention(
            *heads, backend=self.config.attention_backend, **self._arguments(context)
        )
        return out

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The merged weights of all rounds."""
        return lsh_attention_weights(*heads, **self._arguments(context))

    def attend_with_memory(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """LSH attention to the last tokens of each bucket, those in memory among them."""
        if self.config.attention_pattern == "chunk" and cache.timeline.empty:
            self.remember(cache, context, *heads)
            return self.attend(context, *heads)
        memory, window = self._memory(cache, context, *heads)
        return memory.attend(*heads, window=window, backend=self.config.attention_backend)

    def remember(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put queries that are keys, and values, into the memory."""
        memory, _ = self._memory(cache, context, *heads)
        memory.remember(*cache.timeline.coming_part(*heads))

    def _memory(
        self, cache: ReformerCache, context: ForwardContext, query_key: Tensor, value: Tensor
    ) -> tuple[LSHMemory | ChunkLSHMemory, AttentionWindow]:
        memory = cache.lsh_layer(self.layer_index)
        if memory.is_initialized and memory.sight.dropout == 0.0 and not self.training:
            return memory, memory.sight
        arguments = self._arguments(context)
        window: AttentionWindow = arguments["window"]
        if not memory.is_initialized:
            settings = HashSettings(
                num_heads=self.num_heads,
                head_size=query_key.shape[-1],
                num_hashes=arguments["num_hashes"],
                seed=arguments["hash_seed"],
                family=arguments["hash_family"],
                bucket_width=arguments["bucket_width"],
                device=query_key.device,
            )
            planned = context.planned_lengths or cache.timeline.coming_lengths
            per_row = factors_of_rows(planned, arguments["num_buckets"], window)
            memory.start(query_key, value, window, settings, per_row)
        return memory, window
