"""The matrix products of a step and nothing else: the time that no implementation can go below.

No masks, no softmax, no hashing, no sorting, no normalisation: what remains is bounded by the
machine's matrix multiplication. Dividing our time by this says how much there is left to win.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from benchmark.case import Case
from benchmark.contender import Contender, Finding, Workload, check_close

# Scores formed at a time, so that they stay in the cache: 2 MiB in fp32.
_SCORE_ELEMENTS = 1 << 19


class _Attention:
    """Products of attention within windows, of all heads and rounds.

    A tile of ``C`` queries meets ``2 C`` keys. Forward ``S = Q K^T`` and ``O = P V``; backward
    again ``S``, then ``dP = dO V^T``, ``dV = P^T dO``, ``dQ = dS K`` and ``dK = dS^T Q``.
    """

    def __init__(self, case: Case) -> None:
        chunk, length = case.chunk_length, case.length
        self._case = case
        self._tiles = -(-length // chunk)
        self._slices = case.batch * case.num_heads * case.rounds
        options: dict[str, Any] = {"device": case.device, "dtype": case.torch_dtype}
        heads = case.batch * case.num_heads
        self._query = torch.randn(heads, self._tiles * chunk, case.head_size, **options)
        self._key = torch.randn(heads, (self._tiles + 1) * chunk, case.head_size, **options)
        self._at_once = max(1, _SCORE_ELEMENTS // (2 * chunk * chunk))
        if case.device_type == "cuda":
            self._at_once = self._tiles
        count = min(self._at_once, self._tiles)
        self._scores = [torch.zeros(count, chunk, 2 * chunk, **options) for _ in range(2)]
        self._by_query = torch.empty(count, chunk, case.head_size, **options)
        self._by_key = torch.empty(count, 2 * chunk, case.head_size, **options)

    def _operands(self, index: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Queries ``[T', C, D]`` and overlapping keys ``[T', 2 C, D]``, a view."""
        chunk, size = self._case.chunk_length, self._case.head_size
        head = index % self._query.shape[0]
        query = self._query[head, first * chunk : (first + count) * chunk]
        key = self._key[head]
        keys = key.as_strided(
            (count, 2 * chunk, size),
            (chunk * size, size, 1),
            key.storage_offset() + first * chunk * size,
        )
        return query.unflatten(0, (count, chunk)), keys

    def _walk(self, backward: bool) -> None:
        for index in range(self._slices):
            for first in range(0, self._tiles, self._at_once):
                count = min(self._at_once, self._tiles - first)
                query, key = self._operands(index, first, count)
                scores, grads = (x[:count] for x in self._scores)
                by_query, by_key = self._by_query[:count], self._by_key[:count]
                torch.bmm(query, key.transpose(1, 2), out=scores)
                if not backward:
                    torch.bmm(scores, key, out=by_query)
                    continue
                torch.bmm(query, key.transpose(1, 2), out=grads)
                torch.bmm(grads, key, out=by_query)
                torch.bmm(grads.transpose(1, 2), query, out=by_key)
                torch.bmm(scores.transpose(1, 2), query, out=by_key)

    def forward(self) -> None:
        """Two products."""
        self._walk(backward=False)

    def backward(self) -> None:
        """Five products."""
        self._walk(backward=True)

    def check(self) -> Finding:
        """The scores of the first tiles, against a product written differently."""
        count = min(self._at_once, self._tiles)
        query, key = self._operands(0, 0, count)
        scores = self._scores[0][:count]
        torch.bmm(query, key.transpose(1, 2), out=scores)
        expected = (query[:1].double().unsqueeze(2) * key[:1].double().unsqueeze(1)).sum(-1)
        return check_close("scores", scores[:1], expected, 5e-2)


class _Projection:
    """Products of ``Y = X W``: forward; backward ``dX = dY W^T`` and ``dW = X^T dY``."""

    def __init__(self, case: Case, rows: int, inputs: int, outputs: int) -> None:
        options: dict[str, Any] = {"device": case.device, "dtype": case.torch_dtype}
        self._slice = min(rows, case.feed_forward_slice)
        self._repeats = rows / self._slice
        self._x = torch.randn(self._slice, inputs, **options)
        self._y = torch.randn(self._slice, outputs, **options)
        self._w = torch.randn(inputs, outputs, **options)
        # Results stand apart from operands, which would otherwise grow until they overflow.
        self._out = torch.empty_like(self._y)
        self._grad_x, self._grad_w = torch.empty_like(self._x), torch.empty_like(self._w)

    def _times(self) -> Iterable[int]:
        """Row counts of the slices; the last one may be shorter."""
        whole = int(self._repeats)
        yield from [self._slice] * whole
        rest = round((self._repeats - whole) * self._slice)
        if rest:
            yield rest

    def forward(self) -> None:
        """One product."""
        for rows in self._times():
            torch.mm(self._x[:rows], self._w, out=self._out[:rows])

    def backward(self) -> None:
        """Two products."""
        for rows in self._times():
            torch.mm(self._y[:rows], self._w.t(), out=self._grad_x[:rows])
            torch.mm(self._x[:rows].t(), self._y[:rows], out=self._grad_w)


class _Products(Workload):
    """A list of products in a given order."""

    def __init__(
        self,
        attention: _Attention,
        layer: list[_Projection],
        head: list[_Projection],
        depth: int,
        recompute: bool,
    ) -> None:
        self._attention, self._layer, self._head = attention, layer, head
        self._depth, self._recompute = depth, recompute

    @torch.no_grad()
    def step(self) -> None:
        """The products of all layers; those of the forward pass twice where it is recomputed."""
        for _ in range(self._depth):
            for _ in range(2 if self._recompute else 1):
                self._attention.forward()
                for product in self._layer:
                    product.forward()
            self._attention.backward()
            for product in self._layer:
                product.backward()
        for product in self._head:
            product.forward()
            product.backward()

    def findings(self) -> list[Finding]:
        """The products are products."""
        return [self._attention.check()]

    def parameters(self) -> Iterable[Tensor]:
        """None."""
        return ()


class AttentionProducts(Contender):
    """Seven products per round: two forward, five backward."""

    name = "products"
    label = "matrix products alone"

    def build(self, case: Case) -> Workload:
        """Operands."""
        torch.manual_seed(case.seed)
        return _Products(_Attention(case), [], [], depth=1, recompute=False)


class ModelProducts(AttentionProducts):
    """All products of a reversible training step: each layer's forward pass runs twice."""

    def build(self, case: Case) -> Workload:
        """Operands."""
        torch.manual_seed(case.seed)
        rows, width = case.batch * case.length, case.hidden_size
        features, inner = case.num_heads * case.head_size, case.feed_forward_size
        layer = [
            _Projection(case, rows, width, features),
            _Projection(case, rows, width, features),
            _Projection(case, rows, features, width),
            _Projection(case, rows, width, inner),
            _Projection(case, rows, inner, width),
        ]
        head = [_Projection(case, rows, width, case.vocab_size)]
        return _Products(_Attention(case), layer, head, depth=case.depth, recompute=True)
