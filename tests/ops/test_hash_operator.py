"""Hashing as an operator: what graphs are told of its result is what it returns."""

from __future__ import annotations

import pytest
import torch

import reformer_hf.ops.hash_operator  # noqa: F401


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("family", ["angular", "euclidean", "random"])
@pytest.mark.parametrize("num_buckets", [None, [6], [4, 6]], ids=str)
def test_opcheck_passes(num_buckets: list[int] | None, family: str, padded: bool) -> None:
    # Heads as they come from a projection.
    vectors = torch.randn(2, 20, 3, 8).transpose(1, 2)
    real = torch.ones(2, 20, dtype=torch.bool)
    real[0, 15:] = False
    rest = (None, num_buckets, 2, "window", 4, 0, 4, 7, family, 1.0)
    operator = torch.ops.reformer_hf.hash_tokens.default
    torch.library.opcheck(operator, (vectors, real if padded else None, *rest))
