"""Keys from shared queries and keys: ``k = q / |q|`` (Reformer, section 2, arXiv:2001.04451)."""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.precision import widen

# Keys are divided by sqrt(|q|^2 + D * KEY_NORM_EPS), as in transformers' Reformer.
KEY_NORM_EPS = 1e-6


def normalize_keys(query: Tensor) -> Tensor:
    """``k = q / sqrt(|q|^2 + D eps)``: unit-length keys from shared query/key vectors.

    The norm is formed in fp32 or better and the result has the dtype of ``query``.
    """
    wide = widen(query)
    return (wide * inverse_key_norm(wide)).to(query.dtype)


def inverse_key_norm(query: Tensor) -> Tensor:
    """``1 / sqrt(|q|^2 + D eps)`` with the last dimension kept; ``query`` fp32 or fp64."""
    norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() + query.shape[-1] * KEY_NORM_EPS)
