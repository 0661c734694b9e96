"""Self-attention to the neighbours in the sequence."""

from __future__ import annotations

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import PassShape
from reformer_hf.layers.self_attention import QueryKeyValueAttention
from reformer_hf.ops.local_attention import local_attention, local_attention_weights
from reformer_hf.ops.windowed_attention.torch_backend import bytes_at_work


class LocalSelfAttention(QueryKeyValueAttention):
    """Local attention; see :func:`~reformer_hf.ops.local_attention.local_attention`."""

    def _bytes_saved(self, shape: PassShape) -> int:
        """One sum of each head."""
        return 4 * self.num_heads

    def _bytes_of_results(self, shape: PassShape) -> int:
        """The output of the heads, and one sum of each."""
        return self.num_heads * (shape.width * self.config.attention_head_size + 4)

    def _bytes_at_work(self, shape: PassShape) -> int:
        """What the backend forms."""
        reach = self.config.local_attn_chunk_length
        heads = shape.batch * self.num_heads
        return bytes_at_work(heads, shape.length, self.config.attention_head_size, reach)

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Local attention of ``query``, ``key`` and ``value`` heads."""
        out, _ = local_attention(
            *heads,
            window=self._window("local", context, exclude_self=False),
            padding=context.padding,
            backend=self.config.attention_backend,
        )
        return out

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The attention weights within the windows."""
        window = self._window("local", context, exclude_self=False)
        return local_attention_weights(*heads, window=window, padding=context.padding)

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """Local attention; the cache holds the window before the new tokens only."""
        return cache.local_layer(self.layer_index).attend(
            *heads,
            window=self._window("local", context, exclude_self=False),
            backend=self.config.attention_backend,
        )

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put keys and values into the cache."""
        del context
        cache.local_layer(self.layer_index).store(*cache.timeline.coming_part(*heads[1:]))
