"""Full attention: of a sequence to itself, and of a target to its source."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import EncoderDecoderCache

from reformer_hf.cache import ReformerCache
from reformer_hf.configuration_reformer import ReformerSeq2SeqConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.heads import HeadMerge, split_heads
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.self_attention import QueryKeyValueAttention
from reformer_hf.layers.sub_layer import SubLayer, WithWeights
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.precision import widen
from reformer_hf.ops.sorting import padding_order


def _key_mask(real: Tensor | None) -> Tensor | None:
    """``[B, 1, 1, M]`` bool: which keys are seen; a row without real keys sees all of them."""
    if real is None:
        return None
    return (real | ~real.any(dim=1, keepdim=True))[:, None, None, :]


def _dense_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """``softmax(q k^T / sqrt(D))`` with ``-inf`` where the mask is false."""
    scores = widen(torch.matmul(query, key.transpose(-1, -2))) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1)


class FullSelfAttention(QueryKeyValueAttention):
    """Attention of every token to every (earlier) token, by PyTorch's fused kernel.

    In a causal layer padding is moved behind the real tokens first, so that no ``N x N`` mask is
    needed to hide it.
    """

    rotary = True

    def draws(self) -> bool:
        dropout = self.config.full_attention_probs_dropout_prob
        return super().draws() or (self.training and dropout > 0.0)

    def attend(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """Full attention of ``query``, ``key`` and ``value`` heads."""
        query, key, value = heads
        dropout = self.config.full_attention_probs_dropout_prob if self.training else 0.0
        padding = context.padding
        if not self.causal:
            mask = _key_mask(padding.real if padding is not None else None)
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout
            )
        order = padding_order(padding)
        if order is None:
            return F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=True
            )
        forth = order.order[:, :, 0].unsqueeze(-1).expand_as(query)
        back = order.rank[:, :, 0].unsqueeze(-1).expand_as(query)
        query, key, value = (x.gather(2, forth) for x in heads)
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return out.gather(2, back)

    def weights(self, context: ForwardContext, *heads: Tensor) -> Tensor:
        """The attention matrix."""
        query, key, _ = heads
        mask = self._dense_mask(context.padding, query)
        weights = _dense_weights(query, key, mask)
        dropout = self.config.full_attention_probs_dropout_prob
        return F.dropout(weights, dropout, self.training)

    def attend_to_cached(
        self, cache: ReformerCache, context: ForwardContext, *heads: Tensor
    ) -> Tensor:
        """Full attention to all tokens in the cache."""
        dropout = self.config.full_attention_probs_dropout_prob if self.training else 0.0
        query, key, value = heads
        return cache.full_layer(self.layer_index).attend(query, key, value, dropout)

    def store(self, cache: ReformerCache, context: ForwardContext, *heads: Tensor) -> None:
        """Put keys and values into the cache."""
        del context
        cache.full_layer(self.layer_index).store(*cache.timeline.coming_part(*heads[1:]))

    def _dense_mask(self, padding: Padding | None, query: Tensor) -> Tensor | None:
        mask = _key_mask(padding.real if padding is not None else None)
        if not self.causal:
            return mask
        length = query.shape[2]
        causal = torch.ones((length, length), dtype=torch.bool, device=query.device).tril_()
        if mask is None:
            return causal
        # A padding token sees itself, so that no row is empty.
        return (mask & causal) | torch.eye(length, dtype=torch.bool, device=query.device)


class CrossAttention(SubLayer):
    """Attention of the decoder's tokens to the encoder's output.

    Args:
        config: the model's configuration.
        layer_index: index in the decoder.
    """

    returns_weights = True

    def __init__(self, config: ReformerSeq2SeqConfig, layer_index: int) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.num_heads = config.num_attention_heads
        self.attention_dropout = config.cross_attention_probs_dropout_prob
        features = self.num_heads * config.attention_head_size
        self.norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, features, bias=False)
        self.key = nn.Linear(config.merged_size(), features, bias=False)
        self.value = nn.Linear(config.merged_size(), features, bias=False)
        self.output = HeadMerge(
            config.head_merge, self.num_heads, config.attention_head_size, config.hidden_size
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def last_module(self) -> nn.Module:
        return self.output

    def draws(self) -> bool:
        return super().draws() or (self.training and self.attention_dropout > 0.0)

    def hidden(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> WithWeights:
        """Attention output of all heads ``[B, H, N, D]``, and the weights if asked for.

        Args:
            x: ``[B, N, d]``.
            *inputs: one tensor ``[B, M, merged_size]``, the encoder's output.
            context: settings of the forward pass.
        """
        if context is None:
            raise ValueError("`context` must be a ForwardContext, got None")
        (encoder_states,) = inputs
        projected = self.query(self.norm(x))
        if context.source_shard is not None:
            return self._attend_over_ranks(context, projected, encoder_states), None
        query = split_heads(projected, self.num_heads)
        key, value = self._keys_and_values(encoder_states, context.cross_cache)
        mask = _key_mask(context.encoder_real)
        dropout = self.attention_dropout if self.training else 0.0
        if context.output_attentions:
            weights = F.dropout(_dense_weights(query, key, mask), dropout, self.training)
            return torch.matmul(weights.to(value.dtype), value), weights
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout
        )
        return attended, None

    def _attend_over_ranks(
        self, context: ForwardContext, projected: Tensor, encoder_states: Tensor
    ) -> Tensor:
        """Attention output ``[B, H, n, D]``: here some heads see all tokens of the source.

        Args:
            context: settings of the pass, with the shard of the source. The target is split as
                well, or whole on every rank.
            projected: ``[B, n, H * D]`` queries.
            encoder_states: ``[B, m, merged_size]``, of this rank's tokens of the source.
        """
        source, target = context.source_shard, context.shard
        if source is None:
            raise ValueError("`context.source_shard` must be a SequenceShard, got None")
        own = self.num_heads // source.group.size
        memory = (self.key(encoder_states), self.value(encoder_states))
        key, value = (split_heads(source.exchange_tokens_for_heads(p), own) for p in memory)
        if target is not None:
            query = split_heads(target.exchange_tokens_for_heads(projected), own)
        else:
            query = split_heads(projected, self.num_heads)[:, slice(*source.heads(self.num_heads))]
        attended = F.scaled_dot_product_attention(
            *(query, key, value),
            attn_mask=_key_mask(context.encoder_real),
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        if target is None:
            return source.group.gather_heads(attended)
        exchanged = target.exchange_heads_for_tokens(attended.transpose(1, 2).flatten(2))
        return split_heads(exchanged, self.num_heads)

    def footprint(self, shape: PassShape) -> Footprint:
        """Bytes of a pass: as in self-attention, with keys and values of the source.

        Autograd also keeps the source's states, where they are cast.
        """
        config, width = self.config, shape.width
        size, features = config.hidden_size, self.num_heads * config.attention_head_size
        source = shape.batch * shape.source_length
        normed = 1 + (self.dropout.p > 0.0)
        each = shape.stream_width * size + width * (normed * size + 2 * features)
        states = 2 * width * config.merged_size() * shape.copies
        saved = shape.positions * (each + 4 * self.num_heads)
        saved += source * (2 * width * features + states)
        return Footprint(
            saved=saved,
            recomputed=saved,
            working=2 * width * features * (shape.positions + source),
            last_product=shape.positions * self.last_product(),
        )

    def _keys_and_values(
        self, encoder_states: Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H, M, D]``; in generation they are computed once."""
        if cache is not None and cache.is_updated.get(self.layer_index):
            layer = cache.cross_attention_cache.layers[self.layer_index]
            return layer.keys, layer.values
        key = split_heads(self.key(encoder_states), self.num_heads)
        value = split_heads(self.value(encoder_states), self.num_heads)
        if cache is not None:
            cache.cross_attention_cache.update(key.detach(), value.detach(), self.layer_index)
            cache.is_updated[self.layer_index] = True
        return key, value
