"""What the tests of windowed attention share: problems of any kind, and what backends make of them.

The letters of a problem's results: ``out``, ``lse``, and the gradients ``dq``, ``dk`` and ``dv``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import BucketOrder, sort_by_bucket
from reformer_hf.ops.windowed_attention import windowed_attention

PADDINGS = ("none", "left", "right", "middle", "whole row")
ORDERS = ("per head", "shared by heads", "sequence")


@dataclass(frozen=True)
class Problem:
    """Arguments of one call, without the backend, and the gradient of its output."""

    query: Tensor
    key: Tensor | None
    value: Tensor
    grad_out: Tensor
    order: BucketOrder | None
    real: Tensor | None
    window: AttentionWindow
    scale: float

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem in another precision."""
        return replace(
            self,
            query=self.query.to(dtype),
            key=None if self.key is None else self.key.to(dtype),
            value=self.value.to(dtype),
            grad_out=self.grad_out.to(dtype),
        )

    def attend(self, backend: str) -> tuple[Tensor, Tensor]:
        """Output and lse."""
        return windowed_attention(
            self.query,
            self.key,
            self.value,
            self.order,
            window=self.window,
            real=self.real,
            scale=self.scale,
            backend=backend,
        )

    def solve(self, backend: str) -> dict[str, Tensor]:
        """Output, lse and all gradients."""
        inputs = {"dq": self.query, "dk": self.key, "dv": self.value}
        leaves = {n: x.detach().requires_grad_() for n, x in inputs.items() if x is not None}
        changed = replace(self, query=leaves["dq"], key=leaves.get("dk"), value=leaves["dv"])
        out, lse = changed.attend(backend)
        gradients = torch.autograd.grad(out, list(leaves.values()), self.grad_out)
        return {"out": out.detach(), "lse": lse, **dict(zip(leaves, gradients, strict=True))}


def real_tokens(padding: str, batch: int, length: int) -> Tensor | None:
    """``[B, N]`` bool: the first row is padded in the named way, the others differently or not."""
    if padding == "none":
        return None
    real = torch.ones(batch, length, dtype=torch.bool)
    part = -(-length // 3)
    places = {
        "left": slice(0, part),
        "right": slice(length - part, length),
        "middle": slice(part, 2 * part),
        "whole row": slice(0, length),
    }
    real[0, places[padding]] = False
    if batch > 2:
        real[2, places[padding].start] = False
    return real


def make_problem(
    length: int,
    window: AttentionWindow,
    *,
    rounds: int = 2,
    batch: int = 2,
    heads: int = 2,
    size: int = 4,
    num_buckets: int = 3,
    order: str = "per head",
    padding: str = "none",
    own_keys: bool = False,
    scale: float = 1.0,
) -> Problem:
    """A random problem in fp64, drawn from the global random state."""
    shape = (batch, heads, length, size)
    real = real_tokens(padding, batch, length)
    lines = {"per head": heads, "shared by heads": 1, "sequence": 1}[order]
    if order == "sequence":
        buckets, num_buckets = torch.zeros(batch, 1, 1, length, dtype=torch.int64), 1
    else:
        buckets = torch.randint(0, num_buckets, (batch, lines, rounds, length))
    if real is not None and not (order == "sequence" and window.pattern == "chunk"):
        buckets = torch.where(real[:, None, None, :], buckets, num_buckets)
    ordered = order != "sequence" or (real is not None and window.pattern == "window")
    return Problem(
        query=torch.randn(shape, dtype=torch.float64),
        key=torch.randn(shape, dtype=torch.float64) if own_keys else None,
        value=torch.randn(shape, dtype=torch.float64),
        grad_out=torch.randn(shape, dtype=torch.float64),
        order=sort_by_bucket(buckets) if ordered else None,
        real=real,
        window=window,
        scale=scale,
    )


@pytest.fixture(name="make_problem")
def _make_problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture
def make_window() -> Callable[..., AttentionWindow]:
    """An :class:`AttentionWindow` with defaults for what a test does not care about."""

    def build(pattern: str = "window", before: int = 5, after: int = 0, **options: Any):
        causal = options.setdefault("causal", after == 0)
        if causal and pattern == "window":
            assert after == 0
        options = {"chunk_length": 4, "exclude_self": True, **options}
        return AttentionWindow(pattern, before, after, **options)

    return build
