"""The reversible stack of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.layers.chunk_pattern import arrange_for_chunks
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.full_attention import CrossAttention, FullSelfAttention
from reformer_hf.layers.local_self_attention import LocalSelfAttention
from reformer_hf.layers.lsh_self_attention import LSHSelfAttention
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.self_attention import MAX_LENGTH_WITH_ATTENTIONS, SelfAttention
from reformer_hf.layers.sub_layer import raise_wrong_sharding
from reformer_hf.ops.decoding_streams import DecodingStreams
from reformer_hf.ops.reversible import Keep, ResidualStreams, ReversibleStep

# Bytes of a number of a stored stream, unless the model works in fp64.
_STORED_BYTES = 4
# What a forward pass may keep where gradients leave no room: as much as this many streams, whatever
# the depth, but at most 256 MiB.
_KEPT_STREAMS, _KEPT_BYTES = 8, 1 << 28
# Up to this many tokens streams are kept in fp64, which is quicker for them.
_FEW_TOKENS = 64

_SELF_ATTENTION: dict[str, type[SelfAttention]] = {
    "lsh": LSHSelfAttention,
    "local": LocalSelfAttention,
    "full": FullSelfAttention,
}


class ReformerLayer(nn.Module):
    """Self-attention, cross-attention in a decoder, feed-forward: a container of sub-layers.

    Args:
        config: the model's configuration.
        kind: ``"lsh"``, ``"local"`` or ``"full"``.
        layer_index: index in the stack.
        causal: tokens do not see later tokens.
        decoder: the layer also attends to an encoder's output.
    """

    def __init__(
        self, config: ReformerConfig, kind: str, layer_index: int, causal: bool, decoder: bool
    ) -> None:
        super().__init__()
        self.attention = _SELF_ATTENTION[kind](config, layer_index, causal)
        self.cross_attention: CrossAttention | None = None
        inner_size = config.feed_forward_size
        if decoder:
            if not isinstance(config, ReformerSeq2SeqConfig):
                raise ValueError(
                    f"a decoder layer needs a ReformerSeq2SeqConfig, got {type(config).__name__}"
                )
            self.cross_attention = CrossAttention(config, layer_index)
            inner_size = config.decoder_feed_forward_size or inner_size
        self.feed_forward = FeedForward(config, inner_size)

    def calls(
        self, context: ForwardContext, encoder_states: Tensor | None
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """The layer's residual sub-layers, in order, as plain functions."""
        yield partial(self.attention, context=context)
        if self.cross_attention is not None and encoder_states is not None:
            cross = self.cross_attention
            yield lambda x: cross(x, encoder_states, context=context)
        yield self.feed_forward

    def steps(
        self, context: ForwardContext, encoder_states: Tensor | None, chunk_size: int
    ) -> list[ReversibleStep]:
        """The layer's residual sub-layers, in order.

        Raises:
            ValueError: weights were sharded in a way that does not work here.
        """
        if isinstance(self, FSDPModule):
            raise_wrong_sharding(type(self).__name__, "the layer itself is never called")
        if any(isinstance(part, FullyShardedDataParallel) for part in self.children()):
            raise_wrong_sharding("FullyShardedDataParallel", "that is FSDP1")
        steps = [self.attention.step(context=context)]
        if self.cross_attention is not None and encoder_states is not None:
            steps.append(self.cross_attention.step(inputs=(encoder_states,), context=context))
        steps.append(self.feed_forward.step(chunk_size=chunk_size))
        return steps


@dataclass(frozen=True)
class StackOutput:
    """What a stack computes.

    Attributes:
        last_hidden_state: ``[B, N, merged_size]``, normalised.
        hidden_states: the merged streams before the first and after every layer but the last,
            and ``last_hidden_state``; ``None`` unless asked for.
        attentions: per layer ``[B, H, N, N]``; ``None`` unless asked for.
        cross_attentions: per layer ``[B, H, N, M]``; ``None`` unless asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    cross_attentions: tuple[Tensor, ...] | None


class ReformerStack(nn.Module):
    """Layers on two residual streams, merged and normalised at the end.

    Args:
        config: the model's configuration.
        kinds: the kind of attention of every layer.
        causal: tokens do not see later tokens.
        decoder: layers also attend to an encoder's output.
    """

    def __init__(
        self, config: ReformerConfig, kinds: list[str], causal: bool, decoder: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.kinds = frozenset(kinds)
        self.layers = nn.ModuleList(
            ReformerLayer(config, kind, index, causal, decoder) for index, kind in enumerate(kinds)
        )
        self.norm = StreamLayerNorm(config.merged_size(), eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Read and set by transformers' gradient checkpointing; the reversible path has no use
        # for it, since it stores no activations in the first place.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None

    def _choose_kept(self, steps: Sequence[ReversibleStep], x: Tensor) -> tuple[int, list[Keep]]:
        """What of the steps is kept, so that the backward pass need not compute it again.

        The last steps come first in the backward pass, when most gradients of parameters do not
        exist yet. Up to as much memory as these will take, something can be kept for nothing: the
        peak is no higher, and short inputs are hardly computed twice. Long inputs may keep a few
        streams more than that, as many in deep stacks as in shallow ones. In the order of what they
        save per byte: results that a step remembers; the stream before a step, with which not its
        value is needed again but only its gradients, for which its last product is not; all
        activations of the last steps.

        Returns:
            How many steps, from the first one on, are computed again, and what is kept of these.
        """
        free = sum(
            p.numel() * p.element_size()
            for p in self.parameters()
            # With a hook, an optimizer may use up every gradient at once.
            if p.requires_grad and p.grad is None and not p._post_accumulate_grad_hooks
        )
        positions = x.shape[0] * x.shape[1]
        stream = x.numel() * max(x.element_size(), _STORED_BYTES)
        free = max(free, min(_KEPT_STREAMS * stream, _KEPT_BYTES))
        keep, taken = [Keep()] * len(steps), [0] * len(steps)
        here = [k for k, step in reversed([*enumerate(steps)]) if step.host is None]
        for k in here:
            size = steps[k].results * positions
            if 0 < size <= free:
                keep[k], taken[k] = Keep(results=True), size
                free -= size
        for k in sorted(here, key=lambda k: -steps[k].spared):
            if steps[k].for_gradients is not None and steps[k].spared and stream <= free:
                keep[k] = replace(keep[k], stream=True)
                taken[k] += stream
                free -= stream
        count = len(steps)
        while count:
            last = steps[count - 1]
            free -= last.saved * positions - taken[count - 1]
            if free < 0 or last.saved == 0 or last.host is not None:
                break
            count -= 1
        return count, keep[:count]

    def _merge(self, first: Tensor, second: Tensor) -> Tensor:
        if self.config.stream_merge == "concat":
            return torch.cat((first, second), dim=-1)
        return (first + second) * 0.5

    def _start(self, streams: ResidualStreams) -> Tensor:
        """The merged streams before the first layer: a tensor that everything depends on."""
        if self.config.stream_merge == "concat":
            return self._merge(streams.start, streams.start)
        return streams.start

    def forward(
        self,
        x: Tensor,
        context: ForwardContext,
        encoder_states: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> StackOutput:
        """Run all layers.

        Args:
            x: ``[B, N, d]`` embeddings; both streams start as these.
            context: settings of the forward pass.
            encoder_states: ``[B, M, merged_size]``, for a decoder.
            output_hidden_states: also return intermediate states.
            output_attentions: also return attention weights (dense, so for short inputs only).

        Raises:
            ValueError: attention weights asked for above ``MAX_LENGTH_WITH_ATTENTIONS`` tokens.
        """
        config = self.config
        if output_attentions:
            if x.shape[1] > MAX_LENGTH_WITH_ATTENTIONS:
                raise ValueError(
                    "`output_attentions=True` forms N x N matrices and needs at most "
                    f"{MAX_LENGTH_WITH_ATTENTIONS} tokens, got {x.shape[1]}"
                )
            if context.cache is not None and not context.cache.timeline.empty:
                raise ValueError(
                    "`output_attentions=True` needs the whole sequence, got `past_key_values` with "
                    f"{context.cache.get_seq_length()} tokens"
                )
            cross: list[Tensor] | None = [] if encoder_states is not None else None
            context = replace(context, attentions=[], cross_attentions=cross)
        length = x.shape[1]
        whole = context.cache is None or context.cache.timeline.empty
        if config.attention_pattern == "chunk" and whole:
            x, context = arrange_for_chunks(x, context, config, self.kinds)
        if context.cache is not None:
            few = x.shape[1] <= _FEW_TOKENS and not torch.is_grad_enabled()
            few = few and x.shape[1] == length
            if few and not output_hidden_states:
                return self._decode(x, context, encoder_states)
        # What a step puts into a memory must not be put there again by a recomputation.
        recompute = not output_attentions and context.cache is None
        checkpointing = self.gradient_checkpointing and self.training and recompute
        streams = ResidualStreams(
            x,
            # Weights that are returned must stay connected to what was computed from them.
            reversible=config.reversible and recompute,
            grid=config.residual_grid if config.exact_reversible else None,
            checkpoint=self._gradient_checkpointing_func if checkpointing else None,
        )
        steps = [
            layer.steps(context, encoder_states, config.chunk_size_feed_forward)
            for layer in cast("list[ReformerLayer]", self.layers)
        ]
        recomputed, kept = self._choose_kept([s for layer in steps for s in layer], x)
        states: list[Tensor] = []
        index = 0
        for layer in steps:
            if output_hidden_states:
                states.append(self._merge(*streams.read()) if states else self._start(streams))
            for step in layer:
                if index == recomputed:
                    streams.keep_activations()
                streams.add(step, kept[index] if index < recomputed else Keep())
                index += 1
        merged = self._merge(*streams.read())
        if self.training:
            streams.check_range()
        last: Tensor = self.dropout(self.norm(merged))
        states.append(last)
        attentions, crosses = context.attentions, context.cross_attentions
        if x.shape[1] > length:
            # Only the chunk pattern adds positions.
            last, states = last[:, :length], [s[:, :length] for s in states]
            attentions = attentions and [a[..., :length, :length] for a in attentions]
            crosses = crosses and [a[..., :length, :] for a in crosses]
        return StackOutput(
            last_hidden_state=last,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=None if attentions is None else tuple(attentions),
            cross_attentions=None if crosses is None else tuple(crosses),
        )

    def _decode(
        self, x: Tensor, context: ForwardContext, encoder_states: Tensor | None
    ) -> StackOutput:
        """The same for a few new tokens of a sequence in memory, without gradients."""
        config = self.config
        grid = config.residual_grid if config.exact_reversible else None
        streams = DecodingStreams(x, grid)
        for layer in cast("list[ReformerLayer]", self.layers):
            for call in layer.calls(context, encoder_states):
                streams.add(call)
        last: Tensor = self.dropout(self.norm(self._merge(*streams.read())))
        attentions, crosses = context.attentions, context.cross_attentions
        return StackOutput(
            last_hidden_state=last,
            hidden_states=None,
            attentions=None if attentions is None else tuple(attentions),
            cross_attentions=None if crosses is None else tuple(crosses),
        )
