"""Self-attention to the neighbours in the sequence."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache import ReformerCache
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.heads import split_heads
from reformer_hf.layers.self_attention import QueryKeyValueAttention
from reformer_hf.ops.local_attention import local_attention, local_attention_weights
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.sequence_group import SequenceShard


class LocalSelfAttention(QueryKeyValueAttention):
    """Local attention; see :func:`~reformer_hf.ops.local_attention.local_attention`."""

    kind = "local"
    rotary = True

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Local attention of ``query``, ``key`` and ``value`` heads."""
        window, backend = self._window(context), self.config.attention_backend
        return local_attention(*heads, window=window, padding=context.padding, backend=backend)[0]

    def _attend_over_ranks(
        self, context: ForwardContext, shard: SequenceShard, projections: tuple[Tensor, ...]
    ) -> Tensor:
        """Attention output ``[B, H, n, D]``: keys and values of a window come from the neighbours.

        Where windows reach further than that, where padding stands between real tokens, and with
        dropout (whose decisions belong to positions in whole rows), as in other kinds of attention.
        """
        window, padding = self._window(context), context.padding
        near = shard.neighbours(window.before, window.after)
        if near is None or window.dropout > 0.0 or not context.unbroken:
            return super()._attend_over_ranks(context, shard, projections)
        query, key, value = projections
        key, value = (shard.extend(x, window.before, window.after) for x in (key, value))
        query = F.pad(query, (0, 0, *near))
        if padding is not None:
            span = slice(shard.span.start - near[0], shard.span.stop + near[1])
            padding = Padding.from_attention_mask(padding.real[:, span])
        heads = (split_heads(x, self.num_heads) for x in (query, key, value))
        backend = self.config.attention_backend
        attended = local_attention(*heads, window=window, padding=padding, backend=backend)[0]
        return attended[:, :, near[0] : near[0] + projections[0].shape[1]]

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
