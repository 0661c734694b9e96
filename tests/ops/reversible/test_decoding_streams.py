"""Streams in fp64 read the same bits as those that are stored as integers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reformer_hf.ops.reversible import ResidualStreams, ReversibleStep
from reformer_hf.ops.reversible.decoding_streams import DecodingStreams


@torch.no_grad()
@pytest.mark.parametrize("grid", [None, 2.0**-20, 2.0**-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_layers_read_the_same_bits(grid: float | None, dtype: torch.dtype) -> None:
    layers = [nn.Linear(16, 16).to(dtype) for _ in range(12)]
    x = 3.0 * torch.randn(2, 5, 16, dtype=dtype)

    def call(layer: nn.Linear, source: Tensor) -> Tensor:
        return 4.0 * layer(source.to(dtype)).tanh()

    light = DecodingStreams(x, grid)
    heavy = ResidualStreams(x, reversible=False, grid=grid)
    for layer in layers:
        light.add(lambda source, layer=layer: call(layer, source))
        heavy.add(ReversibleStep(lambda source, layer=layer: call(layer, source), ()))
        for ours, expected in zip(light.read(), heavy.read(), strict=True):
            assert torch.equal(ours, expected)


def test_sums_that_an_integer_could_not_hold_do_not_wrap_around() -> None:
    streams = DecodingStreams(torch.full((1, 1, 1), 2000.0), grid=2.0**-20)
    for _ in range(4):
        streams.add(lambda x: torch.full_like(x, 2000.0))
    assert streams.read()[0].item() == 6000.0
