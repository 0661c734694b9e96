"""The hash kernel finds the buckets that PyTorch's operations find."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.hashing import (
    HashSettings,
    apply_projections,
    draw_projections,
    factorize_buckets,
)

pytest.importorskip("triton")
from reformer_hf.ops import triton_hash

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("num_buckets", [2, 6, 64, [4, 8], [2, 34], [1, 16]], ids=str)
def test_buckets_are_those_of_the_plain_operations(num_buckets, dtype):
    vectors = torch.randn(2, 70, 3, 32).to(dtype).transpose(1, 2)  # one tile and a short one
    drawn = draw_projections(HashSettings(2, 5), factorize_buckets(num_buckets), 3, 32)
    expected = apply_projections(vectors, drawn)
    factors = tuple(b for b in drawn.factors if b > 1)
    assert triton_hash.fits(vectors, factors)
    got = triton_hash.hash_angular(vectors.to(DEVICE), drawn.weights.to(DEVICE), factors)
    assert got.dtype == expected.dtype
    assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize(
    ("size", "dtype", "factors"),
    [(48, torch.float32, (4,)), (32, torch.float64, (4,)), (32, torch.float32, (512,)),
     (32, torch.float32, (2, 2, 2))],
    ids=["size", "dtype", "large factor", "three factors"],
)  # fmt: skip
def test_what_the_kernel_does_not_take_is_left_to_the_plain_operations(size, dtype, factors):
    assert not triton_hash.fits(torch.zeros(1, 1, 4, size, dtype=dtype), factors)


def test_undefined_vectors_have_buckets_within_the_range():
    vectors = torch.full((1, 1, 8, 32), torch.nan)
    drawn = draw_projections(HashSettings(2, 5), (6,), 1, 32)
    got = triton_hash.hash_angular(vectors.to(DEVICE), drawn.weights.to(DEVICE), (6,))
    assert got.min() >= 0
    assert got.max() < 6
