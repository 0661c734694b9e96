"""Arithmetic that all vectorised walks over tiles of scores share.

Scratch memory, exponentials and sums of rows of scores, and the merge of softmaxes over parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Scores formed at a time: 2 MiB in fp32, which with what they are made of about fits the level-2
# caches of two cores.
SCORE_ELEMENTS = 1 << 19
# Below every real score and above those of pairs that do not see each other.
FLOOR = -1e20
_LOG2_E = math.log2(math.e)


def row_sums(weights: Tensor) -> Tensor:
    """Sums over the keys ``[.., K]``, with the last dimension kept.

    The same wherever in the row the keys stand: later tokens move the tiles of a sorted order, and
    partial sums in fp32 would round differently then. A residual grid and the hashes of the next
    layer make visible changes of earlier outputs out of that.
    """
    wide = weights.dtype if weights.device.type == "mps" else torch.float64
    return weights.sum(dim=-1, keepdim=True, dtype=wide).to(weights.dtype)


def exp_(x: Tensor) -> Tensor:
    """``exp(x)`` in place, as a power of two.

    On a CPU ``exp`` is a library call that takes 5 to 50 times as long where its argument is
    minus infinity or its result too small for a normal number, as most masked scores are.
    """
    return x.mul_(_LOG2_E).exp2_()


class Scratch:
    """Buffers that are used again for every block of tiles, instead of fresh memory each time.

    Fresh memory is expensive on a CPU: the operating system maps and clears it page by page.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory of the given shape; what it held before is lost."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(*shape)

    def gather(self, name: str, vectors: Tensor, index: Tensor) -> Tensor:
        """Vectors ``[n, D]`` at ``[..]`` as ``[.., D]``, in fp32 or fp64."""
        out = self.take(name, (index.numel(), vectors.shape[-1]), vectors.dtype)
        torch.index_select(vectors, 0, index.reshape(-1), out=out)
        if vectors.dtype.itemsize < 4:
            out = self.take(name, out.shape, torch.float32).copy_(out)
        return out.view(*index.shape, -1)

    def bmm(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` of batches of matrices."""
        out = self.take(name, (a.shape[0], a.shape[1], b.shape[2]), a.dtype)
        return torch.bmm(a, b, out=out)


class SoftmaxMerge:
    """Softmax over the union of what passes have seen, one pass after the other.

    Attributes:
        sums: ``a = sum exp(S - m) v``, ``m`` and ``s = sum exp(S - m)`` of every token.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self.sums: list[Tensor] = []

    def add(self, mixed: Tensor, highest: Tensor, total: Tensor, slots: Tensor) -> None:
        """Take in ``a`` ``[S, D]``, ``m`` and ``s`` ``[S]`` of a line, by the slots of tokens."""
        sums = self.sums
        name = "part" if sums else "sum"
        own = self._scratch.gather(name, mixed, slots)
        own_highest, own_total = highest[slots], total[slots]
        if not sums:
            self.sums = [own, own_highest, own_total]
            return
        top = torch.maximum(sums[1], own_highest)
        before, now = exp_(sums[1] - top), exp_(own_highest - top)
        sums[0].mul_(before.unsqueeze(-1)).addcmul_(own, now.unsqueeze(-1))
        sums[2].mul_(before).addcmul_(own_total, now)
        sums[1] = top

    def finish(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output ``[G, N, D]``, and ``lse`` and mass ``[G, N]``."""
        mixed, highest, total = self.sums
        nothing = total == 0.0
        lse = highest + total.log()
        mass = exp_(highest - lse.clamp(min=FLOOR)) * total
        mixed /= total.masked_fill(nothing, 1.0).unsqueeze(-1)
        return mixed, lse, mass.masked_fill_(nothing, 1.0)
