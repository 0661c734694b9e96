"""Rotary positions: queries and keys turned by angles that grow with their positions.

The product of a turned query and a turned key depends on their distance and not on where they
stand, so a layer need not learn distances from a table of positions.
Source: RoFormer (arXiv:2104.09864), section 3.2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Angles are formed of a number of whole blocks of positions and a rest, so that they are as exact
# at a million as at a thousand.
_BLOCK = 1024


class RotaryTables(NamedTuple):
    """Cosines and sines of the angles of tokens: ``[B or 1, N, 1, D / 2]`` each."""

    cos: Tensor
    sin: Tensor

    def padded(self, extra: int) -> RotaryTables:
        """The same with further tokens behind, which nobody attends to."""
        return RotaryTables(*(F.pad(x, (0, 0, 0, 0, 0, extra)) for x in self))


def rotary_tables(
    positions: Tensor, head_size: int, theta: float, dtype: torch.dtype
) -> RotaryTables:
    """Cosine and sine of ``p theta^(-2 i / D)`` for every position ``p`` and ``i < D / 2``.

    Args:
        positions: ``[B or 1, N]`` int64.
        head_size: ``D``, even.
        theta: the base: features turn once in ``2 pi`` to ``2 pi theta`` positions.
        dtype: of the tables. Angles are formed in fp32, with an error of at most 1e-3 up to two
            million positions.
    """
    frequencies = [theta ** (-2.0 * i / head_size) for i in range(head_size // 2)]
    blocks = [math.remainder(_BLOCK * f, math.tau) for f in frequencies]
    both = torch.tensor([frequencies, blocks], dtype=torch.float32, device=positions.device)
    of_rest, of_block = both
    block = positions.div(_BLOCK, rounding_mode="floor")
    rest = positions - block * _BLOCK
    angles = block[..., None, None] * of_block + rest[..., None, None] * of_rest
    return RotaryTables(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Heads turned by the angles of their tokens: feature ``i`` together with ``i + D / 2``.

    With the halves ``a`` and ``b`` of a head the result is ``(a cos - b sin, b cos + a sin)``.

    Args:
        x: ``[B, N, H, D]``.
        tables: of the ``N`` tokens.

    Returns:
        ``[B, N, H, D]``.
    """
    cos, sin = (t.to(x) for t in tables)
    first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    turned = (
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    )
    return torch.cat(turned, dim=-1)
