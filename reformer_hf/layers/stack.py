"""The reversible stack of layers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.utils import ModelOutput

from reformer_hf.configuration_reformer import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.layers.chunk_pattern import arrange_for_chunks
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.full_attention import CrossAttention, FullSelfAttention
from reformer_hf.layers.hybrid_self_attention import HybridSelfAttention
from reformer_hf.layers.kept_activations import choose_kept, room_to_keep
from reformer_hf.layers.local_self_attention import LocalSelfAttention
from reformer_hf.layers.lsh_self_attention import LSHSelfAttention
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.self_attention import MAX_LENGTH_WITH_ATTENTIONS, SelfAttention
from reformer_hf.layers.sub_layer import SubLayer, SubLayerCall, has_hooks, raise_wrong_sharding
from reformer_hf.ops.reversible import DecodingStreams, Keep, ResidualStreams, ReversibleStep
from reformer_hf.ops.sequence_group import together

logger = logging.getLogger(__name__)
_said: list[str] = []

# Bytes of a number of a stored stream, unless the model works in fp64.
_STORED_BYTES = 4
# Up to this many tokens streams are kept in fp64, which is quicker for them.
_FEW_TOKENS = 64

_SELF_ATTENTION: dict[str, type[SelfAttention]] = {
    "lsh": LSHSelfAttention,
    "local": LocalSelfAttention,
    "full": FullSelfAttention,
    "hybrid": HybridSelfAttention,
}


class ReformerLayer(nn.Module):
    """Self-attention, cross-attention in a decoder, feed-forward: a container of sub-layers.

    Args:
        config: the model's configuration.
        kind: ``"lsh"``, ``"local"``, ``"full"`` or ``"hybrid"``.
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

    def calls(self, context: ForwardContext, encoder_states: Tensor | None) -> list[SubLayerCall]:
        """The layer's sub-layers in order, and what each is called with."""
        calls = [SubLayerCall(self.attention, context)]
        if self.cross_attention is not None and encoder_states is not None:
            calls.append(SubLayerCall(self.cross_attention, context, (encoder_states,)))
        calls.append(SubLayerCall(self.feed_forward, context))
        return calls

    def sub_layers(self) -> list[SubLayer]:
        """The layer's sub-layers in order."""
        parts = (self.attention, self.cross_attention, self.feed_forward)
        return [part for part in parts if part is not None]

    def forward(self, merged: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Called only where somebody watches the layer.

        Args:
            merged: the merged streams before the layer; a hook may exchange them.
            run: runs the sub-layers on streams that merge to what it is given.

        Returns:
            The merged streams after the layer, ``[B, N, merged_size]``; a hook may exchange them.
        """
        return run(merged)

    def watched(self) -> bool:
        """Whether somebody's hook looks at the layer itself."""
        return has_hooks(self)

    def check_sharding(self) -> None:
        """Make sure that weights will be there when a sub-layer is called.

        Raises:
            ValueError: weights were sharded in a way that does not work here.
        """
        if isinstance(self, FSDPModule):
            raise_wrong_sharding(type(self).__name__, "the layer is called only where it has hooks")
        if any(isinstance(part, FullyShardedDataParallel) for part in self.children()):
            raise_wrong_sharding("FullyShardedDataParallel", "that is FSDP1")


@dataclass
class StackOutput(ModelOutput):
    """What a stack computes.

    Attributes:
        last_hidden_state: ``[B, N, merged_size]``, normalised.
        hidden_states: the merged streams before the first and after every layer but the last,
            and ``last_hidden_state``; ``None`` unless asked for.
        attentions: per layer ``[B, H, N, N]``; ``None`` unless asked for.
        cross_attentions: per layer ``[B, H, N, M]``; ``None`` unless asked for.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


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

    @property
    def rotary_dtype(self) -> torch.dtype | None:
        """Dtype of what layers turn by rotary positions, without autocast; ``None``: nothing."""
        turned = self.config.rope_theta is not None
        turned = turned and any(_SELF_ATTENTION[kind].rotary for kind in self.kinds)
        return self.norm.weight.dtype if turned else None

    def footprints(self, shape: PassShape) -> list[Footprint]:
        """Bytes of a pass, for every sub-layer in order."""
        layers = cast("list[ReformerLayer]", self.layers)
        return [part.footprint(shape) for layer in layers for part in layer.sub_layers()]

    def _choose_kept(
        self, steps: list[ReversibleStep], x: Tensor, context: ForwardContext, source_length: int
    ) -> list[Keep]:
        """What of every step is kept, so that the backward pass need not compute it again."""
        kind = x.device.type
        narrow = torch.is_autocast_enabled(kind)
        # Ranks that share sequences must decide alike, or one would wait for the other's exchange.
        shard = context.shard
        length = x.shape[1] if shard is None else shard.longest
        shape = PassShape(
            batch=x.shape[0],
            length=length,
            width=(torch.get_autocast_dtype(kind) if narrow else self.norm.weight.dtype).itemsize,
            stream_width=max(x.element_size(), _STORED_BYTES),
            num_hashes=context.num_hashes,
            source_length=source_length,
            device=kind,
            ranks=1 if shard is None else shard.group.size,
        )
        # Weights that a host brings in are gone again when the step is over.
        footprints = [
            own if step.host is None else None
            for step, own in zip(steps, self.footprints(shape), strict=True)
        ]
        stream = shape.positions * x.shape[2] * shape.stream_width
        room = room_to_keep(self.parameters(), stream, shape.ranks)
        kept = choose_kept(footprints, room, stream)
        layers = cast("list[ReformerLayer]", self.layers)
        parts = [part for layer in layers for part in layer.sub_layers()]
        for k, (step, part) in enumerate(zip(steps, parts, strict=True)):
            if step.host is None and part.watched():
                # What somebody looks at is computed once, and has a history.
                return [*kept[:k], *[Keep(activations=True)] * (len(steps) - k)]
        return kept

    def _merge(self, first: Tensor, second: Tensor) -> Tensor:
        if self.config.stream_merge == "concat":
            return torch.cat((first, second), dim=-1)
        return (first + second) * 0.5

    def _start(self, streams: ResidualStreams) -> Tensor:
        """The merged streams before the first layer: a tensor that everything depends on."""
        if self.config.stream_merge == "concat":
            return self._merge(streams.start, streams.start)
        return streams.start

    def _normalize(self, merged: Tensor) -> Tensor:
        last: Tensor = self.dropout(self.norm(merged))
        return last

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
            ValueError: attention weights asked for above ``MAX_LENGTH_WITH_ATTENTIONS`` tokens, or
                with tokens in a cache.
        """
        config, cache, length = self.config, context.cache, x.shape[1]
        if output_attentions:
            _check_weights_can_be_returned(x, context)
            context = replace(context, output_attentions=True)
        if config.attention_pattern == "chunk" and (cache is None or cache.timeline.empty):
            x, context = arrange_for_chunks(x, context, config, self.kinds)
        layers = cast("list[ReformerLayer]", self.layers)
        if cache is not None and not output_hidden_states and not output_attentions:
            few = x.shape[1] <= _FEW_TOKENS and x.shape[1] == length
            if few and not torch.is_grad_enabled() and not any(r.watched() for r in layers):
                merged = self._decode(x, [layer.calls(context, encoder_states) for layer in layers])
                return StackOutput(self._normalize(merged))

        run = partial(self._run, x, context, encoder_states, output_hidden_states)
        try:
            states, weights = run(self._grid)
        except OverflowError as error:
            if cache is not None:
                raise  # its tokens are stored already
            _say_once_that_sums_are_plain(str(error))
            states, weights = run(None)
        own, cross = weights[SelfAttention], weights[CrossAttention]
        if x.shape[1] > length:
            # Only the chunk pattern adds positions. (A view would not be what the loss depends on.)
            states = [s[:, :length] for s in states]
            own = [w[..., :length, :length] for w in own]
            cross = [w[..., :length, :] for w in cross]
        return StackOutput(
            last_hidden_state=states[-1],
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(own) if output_attentions else None,
            cross_attentions=tuple(cross) if cross else None,
        )

    def _run(
        self,
        x: Tensor,
        context: ForwardContext,
        encoder_states: Tensor | None,
        output_hidden_states: bool,
        grid: float | None,
    ) -> tuple[list[Tensor], dict[type[SubLayer], list[Tensor]]]:
        """The merged streams where they are asked for and at the end, and attention weights.

        Raises:
            OverflowError: in training, a stream outgrew the range that a grid leaves it.
        """
        layers = cast("list[ReformerLayer]", self.layers)
        calls = [layer.calls(context, encoder_states) for layer in layers]
        # What a step puts into a cache must not be put there again by a recomputation, and weights
        # that are returned must stay connected to what was computed from them.
        once = context.output_attentions or context.cache is not None
        # Reversible layers decide themselves what is computed again.
        checkpointing = self.gradient_checkpointing and self.training and not once
        checkpointing = checkpointing and not self.config.reversible
        streams = ResidualStreams(
            x,
            reversible=self.config.reversible and not once,
            grid=grid,
            checkpoint=self._gradient_checkpointing_func if checkpointing else None,
        )
        for layer in layers:
            layer.check_sharding()
        weights: dict[type[SubLayer], list[Tensor]] = {SelfAttention: [], CrossAttention: []}
        if context.output_attentions:
            steps = [[_noting(call, weights) for call in layer] for layer in calls]
        else:
            steps = [[call.step(x, streams.recomputing) for call in layer] for layer in calls]
        kept = [Keep()] * sum(map(len, steps))
        if streams.recomputing:
            source = 0 if encoder_states is None else encoder_states.shape[1]
            if context.source_shard is not None:
                source = context.source_shard.longest
            kept = self._choose_kept([*chain(*steps)], x, context, source)
        coming = iter(kept)
        states: list[Tensor] = []
        for layer, layer_steps in zip(layers, steps, strict=True):
            if output_hidden_states:
                states.append(self._merge(*streams.read()) if states else self._start(streams))
            add = partial(_add_all, streams, [(step, next(coming)) for step in layer_steps])
            if layer.watched():
                self._call(layer, streams, add)
            else:
                add()
        merged = self._merge(*streams.read())
        if self.training:
            with together(context.group):
                streams.check_range()
        return [*states, self._normalize(merged)], weights

    def _call(
        self, layer: ReformerLayer, streams: ResidualStreams, add: Callable[[], None]
    ) -> None:
        """Run a layer within a call of its module, whose hooks see the merged streams."""
        concat = self.config.stream_merge == "concat"

        def exchange(exchanged: Tensor) -> None:
            if not isinstance(exchanged, Tensor) or exchanged.shape != merged.shape:
                tensor = isinstance(exchanged, Tensor)
                raise ValueError(
                    f"a hook on a {type(layer).__name__} must return {list(merged.shape)}, "
                    f"got {list(exchanged.shape) if tensor else type(exchanged).__name__}"
                )
            streams.replace_merged(exchanged, concat)

        def run(exchanged: Tensor) -> Tensor:
            exchange(exchanged)
            add()
            return self._merge(*streams.read())

        merged = self._merge(*streams.read())
        exchange(layer(merged, run=run))

    @property
    def _grid(self) -> float | None:
        return self.config.residual_grid if self.config.exact_reversible else None

    def _decode(self, x: Tensor, calls: list[list[SubLayerCall]]) -> Tensor:
        """The merged streams of a few new tokens of a sequence in a cache, without gradients."""
        streams = DecodingStreams(x, self._grid)
        for call in chain(*calls):
            streams.add(call.residual)
        return self._merge(*streams.read())


def _add_all(streams: ResidualStreams, steps: list[tuple[ReversibleStep, Keep]]) -> None:
    for step, keep in steps:
        streams.add(step, keep)


def _say_once_that_sums_are_plain(error: str) -> None:
    if not _said:
        _said.append(error)
        logger.warning("%s; the pass was computed again without rounding to the grid", error)


def _check_weights_can_be_returned(x: Tensor, context: ForwardContext) -> None:
    if context.group is not None:
        raise ValueError(
            "`output_attentions=True` needs whole sequences, got sequences that are split over "
            f"{context.group.size} ranks"
        )
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


def _noting(call: SubLayerCall, weights: dict[type[SubLayer], list[Tensor]]) -> ReversibleStep:
    """A step on the plain path that notes attention weights by the kind of sub-layer."""
    kind = CrossAttention if isinstance(call.module, CrossAttention) else SelfAttention

    def function(x: Tensor) -> Tensor:
        residual, own = call(x)
        if own is not None:
            weights[kind].append(own)
        return residual

    return ReversibleStep(function, ())
