"""What the three kinds of self-attention have in common: a pre-normalised residual sub-layer."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from reformer_hf.cache import ReformerCache
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.heads import HeadMerge, split_heads
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.sub_layer import SubLayer, WithWeights
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.rotary import RotaryTables, rotate
from reformer_hf.ops.sequence_group import SequenceShard
from reformer_hf.ops.windowed_attention.reference import MAX_LENGTH
from reformer_hf.ops.windowed_attention.torch_backend import bytes_at_work

# Above this length `output_attentions=True` is refused: the matrices are N x N.
MAX_LENGTH_WITH_ATTENTIONS = MAX_LENGTH


class SelfAttention(SubLayer):
    """``dropout(merge(attention(norm(x))))``; subclasses project and attend.

    Args:
        config: the model's configuration.
        layer_index: index in the stack; layers of one stack hash with different rotations.
        causal: tokens do not see later tokens.
    """

    returns_weights = True
    # What the fields of its window begin with: "lsh" or "local"; "": it has none.
    kind: ClassVar[str] = ""
    # Whether queries and keys are turned by rotary positions, where a model has them.
    rotary: ClassVar[bool] = False

    def __init__(self, config: ReformerConfig, layer_index: int, causal: bool) -> None:
        super().__init__()
        self.config = config
        self.layer_index = layer_index
        self.causal = causal
        self.num_heads = config.num_attention_heads
        self.norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.add_projections()
        self.output = HeadMerge(
            config.head_merge, self.num_heads, config.attention_head_size, config.hidden_size
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _projection(self) -> nn.Linear:
        """A projection of the stream to all heads."""
        features = self.num_heads * self.config.attention_head_size
        return nn.Linear(self.config.hidden_size, features, bias=False)

    # ---- what a kind of attention defines ----

    def add_projections(self) -> None:
        """Make the projections to heads."""
        raise NotImplementedError

    def project(self, normed: Tensor) -> tuple[Tensor, ...]:
        """The projections ``[B, N, H * D]`` of ``[B, N, d]``, values last."""
        raise NotImplementedError

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

    # ---- as a sub-layer ----

    @property
    def last_module(self) -> nn.Module:
        return self.output

    def hidden(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> WithWeights:
        """Attention output of all heads ``[B, H, N, D]``, and the weights if asked for."""
        if context is None:
            raise ValueError("`context` must be a ForwardContext, got None")
        cache = context.cache
        projections, shard = self.project(self.norm(x)), context.shard
        if self.rotary and context.rotary is not None:
            projections = self._rotated(projections, context.rotary)
        if shard is not None:
            return self._attend_over_ranks(context, shard, projections), None
        heads = tuple(split_heads(p, self.num_heads) for p in projections)
        if context.output_attentions:
            weights = self.weights(context, *heads)
            if cache is not None:
                self.store(cache, context, *heads)
            return torch.matmul(weights.to(heads[-1].dtype), heads[-1]), weights
        if cache is not None:
            return self.attend_with_cache(cache, context, *heads), None
        return self.attend(context, *heads), None

    def _rotated(self, projections: tuple[Tensor, ...], tables: RotaryTables) -> tuple[Tensor, ...]:
        """The projections ``[B, N, H * D]`` with all but the values turned."""
        *turned, value = projections
        heads = (p.unflatten(-1, (self.num_heads, -1)) for p in turned)
        return (*(rotate(h, tables).flatten(2) for h in heads), value)

    def _attend_over_ranks(
        self, context: ForwardContext, shard: SequenceShard, projections: tuple[Tensor, ...]
    ) -> Tensor:
        """Attention output ``[B, H, n, D]`` of this rank's tokens: here some heads see all tokens.

        Args:
            context: settings of the pass.
            shard: this rank's part of the sequences.
            projections: ``[B, n, H * D]`` of this rank's tokens, for all heads.
        """
        own = self.num_heads // shard.group.size
        heads = tuple(split_heads(shard.exchange_tokens_for_heads(p), own) for p in projections)
        attended = self.attend(context, *heads).transpose(1, 2).flatten(2)
        return split_heads(shard.exchange_heads_for_tokens(attended), self.num_heads)

    def footprint(self, shape: PassShape) -> Footprint:
        """Bytes of a pass.

        Autograd keeps the stream that is read, its normalisation (for every projection, where it is
        cast), the projections, the output of the heads and the mask of dropout, and what the kind
        of attention keeps. At work, besides, are the gradients of all these.
        """
        config, width, positions = self.config, shape.width, shape.positions
        size, heads, head_size = config.hidden_size, self.num_heads, config.attention_head_size
        features, rounds = heads * head_size, self._rounds(shape)
        sums = 8 if rounds else 4
        projections = sum(isinstance(m, nn.Linear) for m in self.children())
        normed = 1 + (projections - 1) * shape.copies + (self.dropout.p > 0.0)
        saved = shape.stream_width * size + width * (normed * size + (projections + 1) * features)
        # Per head: sums, and per round three int64 numbers of the order.
        saved = positions * (saved + heads * (sums + 24 * rounds))
        working = width * (size + (projections + 1) * features) * positions
        results = 0
        if self.kind:
            results = positions * heads * (width * head_size + sums + 12 * rounds)
            reach: int = getattr(config, f"{self.kind}_attn_chunk_length")
            working += 16 * positions * heads * rounds
            slices, length = shape.batch * heads // shape.ranks, shape.length * shape.ranks
            working += bytes_at_work(slices, length, head_size, reach)
        if shape.ranks > 1:  # what is sent and what is received
            working += 2 * width * features * positions
        return Footprint(saved, saved, working, positions * self.last_product(), results)

    def _rounds(self, shape: PassShape) -> int:
        """Hash rounds, each of which sorts all tokens."""
        del shape
        return 0

    def _window(self, context: ForwardContext) -> AttentionWindow:
        """The window that the configuration describes for this kind of attention."""
        config, kind = self.config, self.kind
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
            exclude_self=kind == "lsh",
            count_duplicates=config.count_duplicates,
            dropout=dropout if self.training else 0.0,
            dropout_seed=context.dropout_seed + self.layer_index,
            heads=context.head_share(self.num_heads),
        )


class QueryKeyValueAttention(SelfAttention):
    """Self-attention with projections of its own for queries, keys and values."""

    def add_projections(self) -> None:
        self.query = self._projection()
        self.key = self._projection()
        self.value = self._projection()

    def project(self, normed: Tensor) -> tuple[Tensor, ...]:
        return self.query(normed), self.key(normed), self.value(normed)
