"""The position-wise feed-forward sub-layer."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import ACT2FN

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.footprint import Footprint, PassShape
from reformer_hf.layers.norm import StreamLayerNorm
from reformer_hf.layers.sub_layer import SubLayer, WithWeights

# Inner activations that a slice should have at most on a CPU (16 MiB of fp32): fresh memory above
# 32 MiB comes from the operating system every time, which clears it page by page.
_SLICE_ELEMENTS = 1 << 22


class FeedForward(SubLayer):
    """``dropout(W2 act(dropout(W1 norm(x) + b1)) + b2)``.

    It works position by position, so it is called on slices of the sequence
    (``config.chunk_size_feed_forward``), which bounds the memory of its inner activations.

    Args:
        config: the model's configuration.
        inner_size: width of the inner layer.
    """

    def __init__(self, config: ReformerConfig, inner_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.inner_size = inner_size
        self.inner = nn.Linear(config.hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    @property
    def last_module(self) -> nn.Module:
        return self.outer

    def hidden(self, x: Tensor, *inputs: Tensor, context: ForwardContext | None) -> WithWeights:
        """Inner activations ``[B, n, inner_size]`` of a slice ``[B, n, d]`` of a stream."""
        return self.activation(self.dropout(self.inner(self.norm(x)))), None

    def chunk_size(self, x: Tensor) -> int:
        return self._slice_length(x.shape[0], x.device.type)

    def _slice_length(self, batch: int, device: str) -> int:
        chunk = self.config.chunk_size_feed_forward
        if chunk > 0 and device == "cpu":
            chunk = min(chunk, max(1, _SLICE_ELEMENTS // max(1, batch * self.inner_size)))
        return chunk

    def footprint(self, shape: PassShape) -> Footprint:
        """Bytes of a pass.

        Autograd keeps the stream that is read, its normalisation, the inner layer before and after
        the activation, and masks of dropout. At work, besides, are three gradients of one slice and
        those of the weights, once more where there are several slices.
        """
        size, inner, width = self.config.hidden_size, self.inner_size, shape.width
        masks = (size + inner) * (self.dropout.p > 0.0)
        each = shape.stream_width * size + width * (size + 2 * inner + masks)
        chunk = self._slice_length(shape.batch, shape.device) or shape.length
        rows = shape.batch * min(chunk, shape.length)
        again = 2 if rows < shape.positions else 1
        weights = 2 * size * inner * (4 * again + 2 * width * shape.copies)
        return Footprint(
            saved=each * shape.positions,
            recomputed=each * rows,
            working=width * rows * (2 * size + inner) + weights,
            last_product=shape.positions * self.last_product(),
        )
