"""Rotary positions: the product of a query and a key knows their distance, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.rotary import rotary_tables, rotate

SIZE, THETA = 16, 10_000.0


def turned(x: Tensor, positions: Tensor) -> Tensor:
    return rotate(x, rotary_tables(positions, SIZE, THETA, x.dtype))


def exact(x: Tensor, positions: Tensor) -> Tensor:
    """The same as a product of complex numbers in fp64."""
    frequencies = THETA ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    angles = positions[..., None, None].double() * frequencies
    halves = x.double().unflatten(-1, (2, -1))
    numbers = torch.complex(halves[..., 0, :], halves[..., 1, :])
    numbers = numbers * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag), dim=-1)


@pytest.mark.parametrize("start", [0, 1000, 1_000_000, 2_000_000])
def test_heads_are_turned_by_their_positions_exactly_even_at_a_million(start: int) -> None:
    x = torch.randn(2, 1500, 3, SIZE)
    positions = torch.arange(start, start + 1500).unsqueeze(0)
    error = (turned(x, positions) - exact(x, positions)).abs().max()
    assert error < 1e-3 * x.abs().max()


def test_angles_do_not_follow_the_default_dtype() -> None:
    positions = torch.arange(2000, 2008).unsqueeze(0)
    expected = rotary_tables(positions, SIZE, THETA, torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rotary_tables(positions, SIZE, THETA, torch.float32)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found.cos, expected.cos)
    assert torch.equal(found.sin, expected.sin)


def test_products_depend_on_distances_alone() -> None:
    query, key = torch.randn(2, 1, 40, 1, SIZE, dtype=torch.float64)
    positions = torch.arange(40).unsqueeze(0)

    def scores(first: int) -> Tensor:
        q, k = (turned(x, positions + first)[:, :, 0] for x in (query, key))
        return q @ k.transpose(1, 2)

    torch.testing.assert_close(scores(12_345), scores(0), atol=1e-3, rtol=0)
    assert (scores(0) - query[:, :, 0] @ key[:, :, 0].transpose(1, 2)).abs().max() > 0.1


def test_rows_have_positions_of_their_own() -> None:
    x = torch.randn(2, 5, 1, SIZE)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    both = turned(x, positions)
    for row in range(2):
        own = turned(x[row : row + 1], positions[row : row + 1])
        assert torch.equal(both[row : row + 1], own)


def test_position_zero_and_padding_behind() -> None:
    x = torch.randn(1, 3, 2, SIZE)
    tables = rotary_tables(torch.zeros(1, 2, dtype=torch.int64), SIZE, THETA, x.dtype).padded(1)
    result = rotate(x, tables)
    assert torch.equal(result[:, :2], x[:, :2])
    assert not result[:, 2].any()


def test_gradients_turn_back() -> None:
    x = torch.randn(1, 4, 2, SIZE, dtype=torch.float64, requires_grad=True)
    tables = rotary_tables(torch.arange(4).unsqueeze(0), SIZE, THETA, x.dtype)
    assert torch.autograd.gradcheck(lambda y: rotate(y, tables), x)
