"""Layer norm of a wide stream in a narrow model."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reformer_hf.layers.norm import StreamLayerNorm


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_statistics_are_those_of_the_stream_and_the_result_has_the_dtype_of_the_weights(
    weights: torch.dtype,
) -> None:
    norm = StreamLayerNorm(16, eps=1e-6).to(weights)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    # A large common offset, which half precision could not subtract.
    x = torch.randn(2, 3, 16) * 0.01 + 100.0
    out = norm(x)
    expected = F.layer_norm(x, (16,), norm.weight.float(), norm.bias.float(), 1e-6)
    assert out.dtype == weights
    assert torch.equal(out, expected.to(weights))
