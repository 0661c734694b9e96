"""The precision of scores, sums, norms and losses: fp32 at least."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """fp64 for a tensor in fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """``x`` in :func:`wide_dtype`."""
    return x.to(wide_dtype(x))
