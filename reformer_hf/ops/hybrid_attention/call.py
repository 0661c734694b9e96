"""What one call of hybrid attention consists of, and how a padded batch becomes calls without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.head_share import numbering
from reformer_hf.ops.hybrid_attention.window import HybridWindow
from reformer_hf.ops.precision import wide_dtype


@dataclass(frozen=True)
class HybridCall:
    """Validated arguments of :func:`~reformer_hf.ops.hybrid_attention.hybrid_attention`.

    Attributes:
        query: ``[B, H, M, D]``, the last ``M`` of ``N`` tokens.
        key: ``[B, Hkv, N, D]``.
        value: ``[B, Hkv, N, D]``.
        real: ``[B, N]`` bool, or ``None`` if all tokens are real.
        window: who sees whom.
        scale: factor on the scores.
        first_row: index of the first row in the batch that this is a part of (for dropout).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    real: Tensor | None
    window: HybridWindow
    scale: float
    first_row: int = 0

    @property
    def first_query(self) -> int:
        """Position of the first query among the keys."""
        return self.key.shape[2] - self.query.shape[2]

    @property
    def query_numbering(self) -> tuple[int, int]:
        """The number of the first query head in the layer, and the layer's query heads."""
        first, total = numbering(self.window.heads, self.key.shape[1])
        return first * self.group_size, total * self.group_size

    @property
    def group_size(self) -> int:
        """Query heads of one key-value head, ``G``."""
        return self.query.shape[1] // self.key.shape[1]


def _index(real: Tensor) -> slice | Tensor:
    """Where ``[N]`` is true: a slice, which costs nothing, if these stand side by side."""
    index = real.nonzero().flatten()
    if index.numel() == 0:
        return slice(0, 0)
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == index.numel() else index


@dataclass(frozen=True)
class Row:
    """The real tokens of one row.

    Attributes:
        row: its index in the batch.
        queries: the slots of its real queries among ``M``.
        keys: the slots of its real keys among ``N``.
    """

    row: int
    queries: slice | Tensor
    keys: slice | Tensor

    def select_queries(self, x: Tensor) -> Tensor:
        """``[B, H, M, ..]`` as ``[1, H, m, ..]``."""
        return x[self.row : self.row + 1][:, :, self.queries]

    def select_keys(self, x: Tensor) -> Tensor:
        """``[B, H, N, ..]`` as ``[1, H, n, ..]``."""
        return x[self.row : self.row + 1][:, :, self.keys]


def rows(call: HybridCall) -> Iterator[tuple[Row, HybridCall]]:
    """Calls without padding, one for each row that holds a real query."""
    if call.real is None:
        return
    for index, real in enumerate(call.real):
        row = Row(index, _index(real[call.first_query :]), _index(real))
        query = row.select_queries(call.query)
        if query.shape[2]:
            key, value = row.select_keys(call.key), row.select_keys(call.value)
            yield row, HybridCall(query, key, value, None, call.window, call.scale, index)


def empty_output(query: Tensor, value: Tensor) -> Tensor:
    """``[B, H, M, D]`` in the dtype of ``value``, laid out as ``[B, M, H, D]``."""
    batch, heads, length, _ = query.shape
    out = torch.empty(
        (batch, length, heads, value.shape[-1]), dtype=value.dtype, device=value.device
    )
    return out.transpose(1, 2)


def forward_by_row(
    call: HybridCall, run: Callable[[HybridCall], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Output and ``lse`` of a call, by what computes those of calls without padding."""
    if call.real is None:
        return run(call)
    out = empty_output(call.query, call.value).zero_()
    lse = out.new_full(call.query.shape[:3], -torch.inf, dtype=wide_dtype(call.query))
    for row, own in rows(call):
        own_out, own_lse = run(own)
        out[row.row, :, row.queries] = own_out[0]
        lse[row.row, :, row.queries] = own_lse[0]
    return out, lse


Gradients = tuple[Tensor, Tensor, Tensor]


def backward_by_row(
    call: HybridCall,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    run: Callable[[HybridCall, Tensor, Tensor, Tensor], Gradients],
) -> Gradients:
    """Gradients of query, key and value, by what computes those of calls without padding."""
    if call.real is None:
        return run(call, grad_out, out, lse)
    query, key, value = (empty_output(x, x).zero_() for x in (call.query, call.key, call.value))
    for row, own in rows(call):
        found = run(own, *(row.select_queries(x) for x in (grad_out, out, lse)))
        query[row.row, :, row.queries] = found[0][0]
        key[row.row, :, row.keys] = found[1][0]
        value[row.row, :, row.keys] = found[2][0]
    return query, key, value
