"""The residual kernel gives the bits that the plain operations give, and watches the range."""

from __future__ import annotations

import math

import pytest
import torch

from reformer_hf.ops.reversible.grid import STEP_LIMIT, STREAM_LIMIT, to_steps

pytest.importorskip("triton")
from reformer_hf.ops.reversible import triton_residual

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = 2.0**-20
LIMITS = STREAM_LIMIT, STEP_LIMIT


def run(stored: torch.Tensor, added: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    stored, added = stored.to(DEVICE), added.to(DEVICE)
    total, out = torch.empty_like(stored), torch.empty_like(stored, dtype=torch.float32)
    peak = triton_residual.add(stored, added, total, out, GRID, *LIMITS)
    return total.cpu(), out.cpu(), float(peak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_sums_are_those_of_the_plain_operations_bit_for_bit(dtype):
    stored = torch.randint(-(1 << 29), 1 << 29, (2, 70, 40), dtype=torch.int32)
    added = (torch.randn(2, 70, 40) * 10).to(dtype)
    total, out, peak = run(stored, added)
    expected = stored + to_steps(added, GRID)
    assert torch.equal(total, expected)
    assert torch.equal(out, expected.float() * GRID)
    assert math.isclose(peak, expected.abs().max().item() / LIMITS[0], rel_tol=1e-6)


def test_halves_are_rounded_to_even():
    steps = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 4194304.5, 8388607.5, 1e8, 0.49999997])
    stored = torch.zeros(1, 1, 10, dtype=torch.int32)
    total, _, _ = run(stored, (steps * GRID).view(1, 1, -1))
    assert torch.equal(total.view(-1), steps.round().to(torch.int32))


def test_subtracting_restores_the_bits_in_place():
    stored = torch.randint(-(1 << 29), 1 << 29, (1, 300, 33), dtype=torch.int32, device=DEVICE)
    added = torch.randn(1, 300, 33, device=DEVICE)
    stream = stored.clone()
    out = torch.empty_like(stream, dtype=torch.float32)
    triton_residual.add(stream, added, stream, out, GRID, *LIMITS)
    assert not torch.equal(stream, stored)
    triton_residual.subtract(stream, added, stream, GRID, LIMITS[1])
    assert torch.equal(stream, stored)


@pytest.mark.parametrize(
    ("number", "peak"), [(math.nan, 0.0), (math.inf, math.inf), (600.0, 600 / 512)], ids=str
)
def test_numbers_that_cannot_be_added_become_nan_and_are_taken_down(number, peak):
    stored = torch.zeros(1, 1, 50, dtype=torch.int32)
    added = torch.zeros(1, 1, 50)
    added[0, 0, 7] = number
    _, out, used = run(stored, added)
    assert torch.isnan(out).all()
    assert math.isclose(used, peak, rel_tol=1e-6)


def test_a_stream_beyond_its_range_becomes_nan():
    stored = torch.full((1, 1, 50), int(LIMITS[0]) - 100, dtype=torch.int32)
    _, out, used = run(stored, torch.full((1, 1, 50), 200 * GRID))
    assert torch.isnan(out).all()
    assert used >= 1.0
