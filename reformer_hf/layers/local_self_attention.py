"""Self-attention to the neighbours in the sequence."""

from __future__ import annotations

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.ops.local_attention import local_attention, local_attention_weights


class LocalSelfAttention(SelfAttention):
    """Local attention; see :func:`~reformer_hf.ops.local_attention.local_attention`."""

    projections = ("query", "key", "value")

    def size_of_results(self) -> int:
        """The output of the heads, and two sums of each."""
        return self.num_heads * (4 * self.config.attention_head_size + 8)

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
