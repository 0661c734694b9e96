"""What the three kinds of self-attention have in common: a pre-normalised residual sub-layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reformer_hf.cache import ReformerCache
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.heads import HeadMerge, split_heads
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.sub_layer import SubLayer
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.reversible import ReversibleStep
from reformer_hf.ops.windowed_attention.reference import MAX_LENGTH

# Above this length `output_attentions=True` is refused: the matrices are N x N.
MAX_LENGTH_WITH_ATTENTIONS = MAX_LENGTH


class SelfAttention(SubLayer):
    """``dropout(merge(attention(norm(x))))``; subclasses project and attend.

    Args:
        config: the model's configuration.
        layer_index: index in the stack; layers of one stack hash with different rotations.
        causal: tokens do not see later tokens.
    """

    projections: ClassVar[tuple[str, ...]]

    def __init__(self, config: ReformerConfig, layer_index: int, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.causal = causal
        self.num_heads = config.num_attention_heads
        self.norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        for name in self.projections:
            features = self.num_heads * config.attention_head_size
            setattr(self, name, nn.Linear(config.hidden_size, features, bias=False))
        self.output = HeadMerge(
            config.head_merge, self.num_heads, config.attention_head_size, config.hidden_size
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Bytes per position that autograd keeps: the stream as it is read and stored, its
        # normalisation, the mask of dropout, projections and output of the heads; and three int64
        # numbers of the order, per head and round.
        features = self.num_heads * config.attention_head_size
        numbers = (3 + (config.hidden_dropout_prob > 0.0)) * config.hidden_size
        self._saved = 4 * (numbers + (len(self.projections) + 1) * features)
        self._saved += 24 * self.num_heads * config.num_hashes

    def step(
        self, *, inputs: tuple[Tensor, ...] = (), chunk_size: int = 0, **settings: Any
    ) -> ReversibleStep:
        """See :class:`SubLayer`."""
        step = super().step(inputs=inputs, chunk_size=chunk_size, **settings)
        return replace(
            step,
            saved=self._saved,
            spared=self.output.multiplications,
            results=self.size_of_results(),
        )

    def size_of_results(self) -> int:
        """Bytes per position of what an operation of the sub-layer can remember."""
        return 0

    def residual(self, x: Tensor, context: ForwardContext, values: bool = True) -> Tensor:
        """The residual ``[B, N, d]`` of a stream ``[B, N, d]``."""
        normed = self.norm(x)
        heads = [
            split_heads(getattr(self, name)(normed), self.num_heads) for name in self.projections
        ]
        if context.attentions is not None:
            weights = self.weights(context, *heads)
            context.attentions.append(weights)
            attended = torch.matmul(weights.to(heads[-1].dtype), heads[-1])
            if context.cache is not None:
                self.store(context.cache, context, *heads)
        elif context.cache is not None:
            attended = self.attend_with_cache(context.cache, context, *heads)
        else:
            attended = self.attend(context, *heads)
        residual: Tensor = self.dropout(self.output(attended, values))
        return residual

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Attention output ``[B, H, N, D]`` from the projections ``[B, H, N, D]``."""
        raise NotImplementedError

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Attention weights ``[B, H, N, N]``, for short sequences."""
        raise NotImplementedError

    def attend_with_cache(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """Attention of new tokens, which are stored, to each other and to those in the cache."""
        if cache.timeline.empty:
            self.store(cache, context, *heads)
            return self.attend(context, *heads)
        return self.attend_to_cached(cache, context, *heads)

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """The same where the cache holds tokens already."""
        raise NotImplementedError

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put the first tokens of a sequence into the cache."""
        raise NotImplementedError

    def _window(self, kind: str, context: ForwardContext, exclude_self: bool) -> AttentionWindow:
        """The window that the configuration describes for ``"lsh"`` or ``"local"``."""
        config = self.config
        chunk_length: int = getattr(config, f"{kind}_attn_chunk_length")
        before: int = getattr(config, f"{kind}_num_chunks_before")
        after: int | None = getattr(config, f"{kind}_num_chunks_after")
        if after is None:
            after = 0 if self.causal else before
        windowed = config.attention_pattern == "window"
        if windowed and self.causal:
            after = 0
        unit = chunk_length if windowed else 1
        dropout: float = getattr(config, f"{kind}_attention_probs_dropout_prob")
        return AttentionWindow(
            pattern=config.attention_pattern,
            before=before * unit,
            after=after * unit,
            chunk_length=chunk_length,
            causal=self.causal,
            exclude_self=exclude_self,
            count_duplicates=config.count_duplicates,
            dropout=dropout if self.training else 0.0,
            dropout_seed=context.dropout_seed + self.layer_index,
        )
