"""The feed-forward sub-layer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reformer_hf import ReformerConfig
from reformer_hf.layers.feed_forward import FeedForward


@pytest.mark.parametrize(
    ("name", "function"), [("gelu", F.gelu), ("relu", F.relu), ("silu", F.silu)]
)
def test_formula(name: str, function: object) -> None:
    assert callable(function)
    layer = FeedForward(ReformerConfig(hidden_size=8, hidden_act=name), 20).eval()
    x = torch.randn(2, 5, 8)
    normed = F.layer_norm(x, (8,), layer.norm.weight, layer.norm.bias, 1e-6)
    expected = layer.outer(function(layer.inner(normed)))
    assert torch.allclose(layer(x), expected, atol=1e-6)


def test_positions_do_not_mix() -> None:
    layer = FeedForward(ReformerConfig(hidden_size=8), 20).eval()
    x = torch.randn(2, 12, 8)
    sliced = torch.cat([layer(part) for part in x.split(5, dim=1)], dim=1)
    assert torch.allclose(sliced, layer(x), atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    layer = FeedForward(ReformerConfig(hidden_size=8, hidden_dropout_prob=0.5), 20)
    x = torch.randn(2, 12, 8)
    assert (layer.train()(x) == 0).float().mean() > 0.3
    assert not (layer.eval()(x) == 0).any()
