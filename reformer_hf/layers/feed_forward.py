"""The position-wise feed-forward sub-layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.projection import project
from reformer_hf.layers.sub_layer import SubLayer
from reformer_hf.ops.reversible import ReversibleStep


class FeedForward(SubLayer):
    """``dropout(W2 act(dropout(W1 norm(x) + b1)) + b2)``.

    It works position by position, so the stack calls it on slices of the sequence
    (``config.chunk_size_feed_forward``), which bounds the memory of its inner activations.

    Args:
        config: the model's configuration.
        inner_size: width of the inner layer.
    """

    def __init__(self, config: ReformerConfig, inner_size: int) -> None:
        super().__init__()
        self.norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.inner_size = inner_size
        self.inner = nn.Linear(config.hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Bytes per position that autograd keeps: the stream as it is read and stored, its
        # normalisation, the inner layer before and after the activation, and masks of dropout.
        size, masks = config.hidden_size, config.hidden_dropout_prob > 0.0
        self._saved = 4 * (3 * size + 2 * inner_size + masks * (size + inner_size))

    def residual(self, x: Tensor, values: bool = True) -> Tensor:
        """The residual ``[B, n, d]`` of a slice ``[B, n, d]`` of a stream."""
        inner = self.activation(self.dropout(self.inner(self.norm(x))))
        residual: Tensor = self.dropout(project(self.outer, inner, values))
        return residual

    def step(
        self, *, inputs: tuple[Tensor, ...] = (), chunk_size: int = 0, **settings: Any
    ) -> ReversibleStep:
        """See :class:`SubLayer`; slices on a CPU also depend on the inner layer's width."""
        step = super().step(inputs=inputs, chunk_size=chunk_size, **settings)
        spared = self.outer.in_features * self.outer.out_features
        return replace(step, width=self.inner_size, saved=self._saved, spared=spared)
