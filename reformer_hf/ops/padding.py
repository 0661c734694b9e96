"""Which tokens are real: the attention mask, read once per forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Padding:
    """A batch in which at least one token is padding.

    A batch without padding is represented by ``None``, so that the common case costs nothing.

    Attributes:
        real: ``[B, N]`` bool, true where a token is real.
        lengths: real tokens of each row, as Python integers; ``None`` while a graph is traced, in
            which no number can depend on data.
    """

    real: Tensor
    lengths: tuple[int, ...] | None

    @staticmethod
    def from_attention_mask(attention_mask: Tensor | None) -> Padding | None:
        """Read a ``[B, N]`` mask (1 or true: real, 0 or false: padding); one device sync.

        Returns:
            ``None`` if the mask is ``None`` or holds no padding; while a graph is traced, a mask
            may always hold padding.
        """
        if attention_mask is None:
            return None
        real = attention_mask != 0
        if torch.compiler.is_compiling():
            return Padding(real, None)
        lengths = tuple(int(n) for n in real.sum(dim=1).tolist())
        if all(n == real.shape[1] for n in lengths):
            return None
        return Padding(real, lengths)

    def count(self) -> tuple[int, ...]:
        """:attr:`lengths`, read now where the mask was read in a graph that ends before here."""
        if self.lengths is not None:
            return self.lengths
        return tuple(int(n) for n in self.real.sum(dim=1).tolist())

    def unbroken(self) -> bool:
        """Whether the real tokens of every row stand side by side; one device sync."""
        begins = self.real[:, 1:] & ~self.real[:, :-1]
        return bool((begins.sum(dim=1) + self.real[:, 0] <= 1).all())

    def positions(self) -> Tensor:
        """``[B, N]`` int64: how many real tokens stand before each token (padding: the nearest)."""
        return (self.real.to(torch.int64).cumsum(dim=1) - 1).clamp_(min=0)
