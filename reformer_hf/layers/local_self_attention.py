"""Self-attention to the neighbours in the sequence."""

from __future__ import annotations

from torch import Tensor

from reformer_hf.cache import ReformerCache
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.self_attention import QueryKeyValueAttention
from reformer_hf.ops.local_attention import local_attention, local_attention_weights


class LocalSelfAttention(QueryKeyValueAttention):
    """Local attention; see :func:`~reformer_hf.ops.local_attention.local_attention`."""

    kind = "local"

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Local attention of ``query``, ``key`` and ``value`` heads."""
        window, backend = self._window(context), self.config.attention_backend
        return local_attention(*heads, window=window, padding=context.padding, backend=backend)[0]

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The attention weights within the windows."""
        window = self._window(context)
        return local_attention_weights(*heads, window=window, padding=context.padding)

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """Local attention; the cache holds the window before the new tokens only."""
        window, backend = self._window(context), self.config.attention_backend
        return cache.local_layer(self.layer_index).attend(*heads, window=window, backend=backend)

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put keys and values into the cache."""
        del context
        cache.local_layer(self.layer_index).store(*cache.timeline.coming_part(*heads[1:]))
