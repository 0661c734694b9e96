"""What the tests of hybrid attention share: problems, and what backends make of them.

The letters of a problem's results: ``out``, ``lse``, and the gradients ``dq``, ``dk`` and ``dv``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention

PADDINGS = ("none", "left", "right", "holes", "whole row")


def padding_mask(kind: str, batch: int, length: int) -> Tensor | None:
    """``[B, N]``; the last row has no padding."""
    if kind == "none":
        return None
    real = torch.ones(batch, length, dtype=torch.bool)
    if kind == "left":
        real[0, : length // 3] = False
    elif kind == "right":
        real[0, length - length // 3 :] = False
    elif kind == "holes":
        real[0] = torch.rand(length, generator=torch.Generator().manual_seed(3)) > 0.2
    else:
        real[0] = False
    return real


@dataclass(frozen=True)
class Problem:
    """Arguments of one call, without the backend, and the gradient of its output."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    real: Tensor | None
    window: HybridWindow

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem in another precision."""
        parts = {n: getattr(self, n).to(dtype) for n in ("query", "key", "value", "grad_out")}
        return replace(self, **parts)

    def solve(self, backend: str) -> dict[str, Tensor]:
        """Output, lse and all gradients."""
        leaves = [x.detach().requires_grad_() for x in (self.query, self.key, self.value)]
        out, lse = hybrid_attention(*leaves, self.window, real=self.real, backend=backend)
        grads = torch.autograd.grad(out, leaves, self.grad_out)
        return dict(zip(("out", "lse", "dq", "dk", "dv"), (out.detach(), lse, *grads), strict=True))


def make_problem(
    window: HybridWindow,
    *,
    queries: int,
    keys: int,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    size: int = 16,
    value_size: int = 16,
    padding: str = "none",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A random problem."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, length: int, size: int) -> Tensor:
        shape = (batch, heads, length, size)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    return Problem(
        draw(heads, queries, size),
        # Keys with a common mean, as pretrained models have them.
        draw(groups, keys, size) + 1.0,
        draw(groups, keys, value_size),
        draw(heads, queries, value_size),
        padding_mask(padding, batch, keys),
        window,
    )
