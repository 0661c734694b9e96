"""Layer normalisation of a wide stream in a narrow model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class StreamLayerNorm(nn.LayerNorm):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` in the precision of the stream.

    Streams are fp32 whatever the dtype of the model; the result has the dtype of the weights, ready
    for the projections that follow.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``[.., d]`` over the last dimension."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        normed = F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)
        return normed.to(self.weight.dtype)
