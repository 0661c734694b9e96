"""LSH attention in vectorised PyTorch: the default on a CPU, and it runs on any accelerator.

No ``N x N`` tensor is formed. The sorted tokens of a row and head are cut into tiles of ``C``
queries, and the keys of a tile are read through an overlapping strided view of the gathered keys,
so that the look-back is not copied. Work proceeds in groups of tiles whose scores stay in the
processor's cache.

The backward pass is written by hand from ``q, k, v, o, lse`` and the order (nothing else is kept):
with ``lse`` merged over the rounds,

    ``P = exp(S - lse)``, ``dV = P^T dO``, ``dP = dO V^T``, ``dS = P * (dP - rowsum(dO * O))``,

per round, summed over rounds; then through the normalisation of the keys. Nothing is propagated
through the merge of the rounds or the hash. Source: FlashAttention-2, section 3 (arXiv:2307.08691),
applied to the union of the rounds' windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reformer_hf.ops.windowed_attention.call import (
    WindowedAttentionCall,
    inverse_key_norm,
)
from reformer_hf.ops.windowed_attention.dropout import keep_mask, key_codes, query_codes
from reformer_hf.ops.windowed_attention.slots import Pass, SlotLayout

# Scores formed at a time: 2 MiB in fp32, about the level-2 caches of two cores.
_SCORE_ELEMENTS = 1 << 19
# Stands in for minus infinity where minus infinity would be subtracted from itself.
_FLOOR = -1e30


def unsupported(call: WindowedAttentionCall) -> str | None:
    """Why this backend cannot serve the call: never; it runs on every device and dtype."""
    del call
    return None


def _rows(x: Tensor) -> Tensor:
    """``[B, H, N, D]`` as rows ``[B N H, D]``; free where heads were split from a projection."""
    return x.transpose(1, 2).reshape(-1, x.shape[-1])


def _like_heads(rows: Tensor, x: Tensor) -> Tensor:
    """The inverse of :func:`_rows`, for rows in the shape of ``x``."""
    batch, heads, length, _ = x.shape
    return rows.view(batch, length, heads, -1).transpose(1, 2)


class _Slices:
    """Groups of rows-and-heads, and where their tokens lie among :func:`_rows`."""

    def __init__(self, query: Tensor, layout: SlotLayout) -> None:
        batch, heads, length, _ = query.shape
        device = query.device
        first_row = torch.arange(batch, device=device).view(-1, 1) * (length * heads)
        self._first = (first_row + torch.arange(heads, device=device)).view(-1, 1)
        self._stride = heads
        self._count = batch * heads
        self._size = max(1, _SCORE_ELEMENTS // (layout.slots * layout.num_keys))
        self._tiles_at_once = max(1, _SCORE_ELEMENTS // (layout.tile * layout.num_keys))
        self._num_tiles = layout.num_tiles

    def groups(self) -> Iterator[tuple[int, int]]:
        """Ranges of slices that are processed together."""
        for start in range(0, self._count, self._size):
            yield start, min(start + self._size, self._count)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Ranges of tiles that are processed together."""
        for first in range(0, self._num_tiles, self._tiles_at_once):
            yield first, min(first + self._tiles_at_once, self._num_tiles)

    def rows(self, start: int, stop: int, token: Tensor) -> Tensor:
        """Row numbers ``[G, ..]`` of the tokens ``[G or 1, ..]`` of the slices ``start:stop``."""
        return self._first[start:stop] + token * self._stride


class _Scratch:
    """Buffers that are used again for every group of tiles, instead of fresh memory each time.

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

    def gather(self, name: str, rows: Tensor, index: Tensor) -> Tensor:
        """Rows ``[rows, D]`` at ``[..]`` as ``[.., D]``."""
        out = self.take(name, (index.numel(), rows.shape[-1]), rows.dtype)
        torch.index_select(rows, 0, index.reshape(-1), out=out)
        return out.view(*index.shape, -1)

    def bmm(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` of batches of matrices."""
        out = self.take(name, (a.shape[0], a.shape[1], b.shape[2]), a.dtype)
        return torch.bmm(a, b, out=out)


def _row_sums(weights: Tensor) -> Tensor:
    """Sums over the keys ``[.., K]``, with the last dimension kept.

    The same wherever in the row the keys stand: later tokens move the tiles of a sorted order, and
    partial sums in fp32 would round differently then. A residual grid and the hashes of the next
    layer make visible changes of earlier outputs out of that.
    """
    wide = weights.dtype if weights.device.type == "mps" else torch.float64
    return weights.sum(dim=-1, keepdim=True, dtype=wide).to(weights.dtype)


def _take_slots(x: Tensor, slot_of_token: Tensor) -> Tensor:
    """``[G, L, ..]`` by slot into ``[G, copies, N, ..]`` by token."""
    group, slots = x.shape[:2]
    first = torch.arange(group, device=x.device).view(-1, 1, 1) * slots
    index = first + slot_of_token
    return x.reshape(group * slots, -1).index_select(0, index.reshape(-1)).view(*index.shape, -1)


class _Kernel:
    """The two walks over all tiles, forward and backward, of one call."""

    def __init__(self, call: WindowedAttentionCall) -> None:
        self.call = call
        self.window = call.window
        self.layout = SlotLayout(call)
        self.slices = _Slices(call.query, self.layout)
        self.wide = torch.float64 if call.query.dtype == torch.float64 else torch.float32
        self.query_rows = _rows(call.query)
        self.key_rows = None if call.key is None else _rows(call.key)
        self.value_rows = _rows(call.value)
        self.scratch = _Scratch(call.query.device)

    def _load(self, part: Pass, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sorted scaled queries ``[G, L, D]``, keys and values ``[G, P, D]``."""
        layout = self.layout
        key_index = self.slices.rows(start, stop, part.key_token)
        gather = self.scratch.gather
        value = gather("value", self.value_rows, key_index)
        if self.key_rows is None:
            shared = gather("shared", self.query_rows, key_index)
            query = shared[:, layout.before : layout.before + layout.slots]
            wide = shared.to(self.wide)
            normed = self.scratch.take("normed", wide.shape, self.wide)
            key = torch.mul(wide, inverse_key_norm(wide), out=normed).to(shared.dtype)
        else:
            query_index = self.slices.rows(start, stop, part.query_token)
            query = gather("query", self.query_rows, query_index)
            key = gather("key", self.key_rows, key_index)
        if self.call.scale != 1.0:
            query = query * self.call.scale
        return query, key, value

    def _queries(self, x: Tensor, first: int, last: int) -> Tensor:
        """Query slots ``[G, L, D]`` as tiles ``[G T', C, D]``."""
        tile = self.layout.tile
        part = x[:, first * tile : last * tile]
        return part.reshape(-1, tile, x.shape[-1])

    def _keys(self, x: Tensor, first: int, last: int) -> Tensor:
        """Key slots ``[G, P, D]`` as overlapping tiles ``[G T', K, D]``: for one slice a view."""
        tile, row = self.layout.tile, x.shape[-1]
        windows = x.as_strided(
            (x.shape[0], last - first, self.layout.num_keys, row),
            (x.stride(0), tile * row, row, 1),
            x.storage_offset() + first * tile * row,
        )
        return windows.reshape(-1, self.layout.num_keys, row)

    def _tile_products(self, name: str, queries: Tensor, keys: Tensor, count: int) -> Tensor:
        """``[G, T', C, K]`` products of the query slots with the key slots of ``T'`` tiles."""
        products = self.scratch.bmm(name, queries, keys.transpose(1, 2)).to(self.wide)
        return products.unflatten(0, (-1, count))

    def _keep(self, part: Pass, start: int, stop: int, first: int, last: int) -> Tensor:
        """Which pairs of the tiles survive dropout, ``[G, T', C, K]`` bool."""
        seed, layout = self.window.dropout_seed, self.layout
        slices = torch.arange(start, stop, device=part.key_token.device).unsqueeze(-1)
        query = query_codes(seed, slices, part.query_round, part.query_token)
        key = key_codes(seed, part.key_token)
        return keep_mask(
            layout.query_tiles(query, first, last),
            layout.key_tiles(key, first, last),
            self.window.dropout,
        )

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows of the output ``[B N H, D]``, and ``lse`` and ``mass`` ``[B, H, N]``.

        ``mass`` is what ``exp(S - lse)`` sums to: 1, but for tokens that see only themselves, and
        more than once. Their ``lse`` is ``SELF_SCORE`` plus a small logarithm, which fp32 rounds to
        multiples of 1/128. ``None``: no token meets itself more than once.
        """
        call, layout = self.call, self.layout
        batch, heads, length, _ = call.query.shape
        out_rows = torch.empty_like(self.value_rows)
        lse = torch.empty((batch * heads, length), dtype=self.wide, device=call.query.device)
        mass = torch.empty_like(lse) if layout.is_ring or layout.num_passes > 1 else None
        tokens = torch.arange(length, device=call.query.device)
        for start, stop in self.slices.groups():
            parts = [
                self._forward_pass(layout.build(index, start, stop), start, stop)
                for index in range(layout.num_passes)
            ]
            out, round_lse, round_mass = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
            merged = round_lse[:, 0] if mass is None else round_lse.logsumexp(dim=1)
            lse[start:stop] = merged
            if mass is not None:
                weight = torch.exp(round_lse - merged.clamp(min=_FLOOR).unsqueeze(1)) * round_mass
                total = weight.sum(dim=1)
                mass[start:stop] = total.masked_fill_(total == 0.0, 1.0)
                out = (out * (weight / total.unsqueeze(1)).unsqueeze(-1)).sum(dim=1)
            rows = self.slices.rows(start, stop, tokens.view(1, -1))
            out_rows[rows.view(-1)] = out.reshape(-1, out.shape[-1]).to(out_rows.dtype)
        if mass is not None:
            mass = mass.view(batch, heads, length)
        return out_rows, lse.view(batch, heads, length), mass

    def _forward_pass(self, part: Pass, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Output ``[G, copies, N, D]``, ``lse`` and mass ``[G, copies, N]`` of one pass."""
        layout = self.layout
        query, key, value = self._load(part, start, stop)
        group, row = query.shape[0], value.shape[-1]
        out = self.scratch.take("out", (group, layout.slots, row), self.wide)
        lse = torch.empty((group, layout.slots), dtype=self.wide, device=query.device)
        mass = torch.empty_like(lse)
        for first, last in self.slices.tiles():
            queries, keys = self._queries(query, first, last), self._keys(key, first, last)
            scores = self._tile_products("scores", queries, keys, last - first)
            layout.mask_scores_(scores, part, first, last)
            highest = scores.amax(dim=-1, keepdim=True).clamp_(min=_FLOOR)
            weights = scores.sub_(highest).exp_()
            total = _row_sums(weights)
            if self.window.dropout > 0.0:
                weights *= self._keep(part, start, stop, first, last)
                weights *= 1.0 / (1.0 - self.window.dropout)
            weights = weights.to(value.dtype)
            slots = slice(first * layout.tile, last * layout.tile)
            rounded = highest + total.log()
            lse[:, slots] = rounded.flatten(1)
            mass[:, slots] = ((highest - rounded.clamp_(min=_FLOOR)).exp_() * total).flatten(1)
            values = self._keys(value, first, last)
            mixed = self.scratch.bmm("mixed", weights.flatten(0, 1), values)
            scale = total.clamp_(min=1e-30).reciprocal_().flatten(1, 2)
            torch.mul(mixed.view(group, -1, row), scale, out=out[:, slots])
        copies = part.slot_of_token
        return (
            _take_slots(out, copies),
            _take_slots(lse, copies).squeeze(-1),
            _take_slots(mass, copies).squeeze(-1),
        )

    def backward(
        self, grad_rows: Tensor, out_rows: Tensor, lse: Tensor, mass: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows of the gradients of query, key (unless shared) and value."""
        call, layout = self.call, self.layout
        length = call.query.shape[2]
        tokens = torch.arange(length, device=call.query.device).view(1, -1)
        if mass is not None:
            # P = exp(S - lse) / mass always stands next to dO or delta: let these carry the factor.
            grad_rows = (grad_rows / _rows(mass.unsqueeze(-1))).to(grad_rows.dtype)
        delta_rows = (grad_rows.to(self.wide) * out_rows.to(self.wide)).sum(dim=-1, keepdim=True)
        lse = lse.reshape(-1, length).clamp(min=_FLOOR)
        grads = [torch.empty_like(self.query_rows)]
        grads += [torch.empty_like(self.value_rows) for _ in range(1 if call.key is None else 2)]
        for start, stop in self.slices.groups():
            total: list[Tensor] | None = None
            for index in range(layout.num_passes):
                part = layout.build(index, start, stop)
                by_slot = self._backward_pass(
                    part, start, stop, grad_rows, delta_rows, lse[start:stop]
                )
                by_token = [_take_slots(x, part.slot_of_token) for x in by_slot]
                summed = [x.sum(dim=1) if x.shape[1] > 1 else x[:, 0] for x in by_token]
                total = (
                    summed
                    if total is None
                    else [a.add_(b) for a, b in zip(total, summed, strict=True)]
                )
            rows = self.slices.rows(start, stop, tokens).view(-1)
            if total is not None:
                self._store(grads, rows, [x.flatten(0, 1) for x in total])
        if call.key is None:
            return grads[0], None, grads[1]
        return grads[0], grads[1], grads[2]

    def _store(self, grads: list[Tensor], rows: Tensor, total: list[Tensor]) -> None:
        grad_query, grad_key, grad_value = total
        grads[-1][rows] = grad_value.to(grads[-1].dtype)
        if self.call.key is None:
            # k = q s with s = (|q|^2 + D eps)^(-1/2), so dq += s (dk - k (k . dk)).
            query = self.query_rows.index_select(0, rows).to(self.wide)
            norm = inverse_key_norm(query)
            key = query * norm
            along = (key * grad_key).sum(dim=-1, keepdim=True)
            grad_query = grad_query + norm * (grad_key - key * along)
        else:
            grads[1][rows] = grad_key.to(grads[1].dtype)
        grads[0][rows] = grad_query.to(grads[0].dtype)

    def _backward_pass(
        self,
        part: Pass,
        start: int,
        stop: int,
        grad_rows: Tensor,
        delta_rows: Tensor,
        lse: Tensor,
    ) -> list[Tensor]:
        """Gradients ``[G, L, D]`` by query slot: of the queries, keys and values of one pass."""
        layout, window = self.layout, self.window
        query, key, value = self._load(part, start, stop)
        query_index = self.slices.rows(start, stop, part.query_token)
        grad_out = self.scratch.gather("grad_out", grad_rows, query_index)
        delta = self.scratch.gather("delta", delta_rows, query_index)
        lse = lse.gather(1, part.query_token.expand(lse.shape[0], -1))
        group, tile = query.shape[0], layout.tile
        shifts = -(-layout.num_keys // tile)
        spread = (group, (layout.num_tiles + shifts - 1) * tile)
        take, row = self.scratch.take, query.shape[-1]
        grad_query = take("grad_query", (group, layout.slots, row), self.wide)
        grad_key = take("grad_key", (*spread, row), self.wide).zero_()
        grad_value = take("grad_value", (*spread, row), self.wide).zero_()
        for first, last in self.slices.tiles():
            count = last - first
            queries, keys = self._queries(query, first, last), self._keys(key, first, last)
            outs, values = self._queries(grad_out, first, last), self._keys(value, first, last)
            scores = self._tile_products("scores", queries, keys, count)
            layout.mask_scores_(scores, part, first, last)
            weights = scores.sub_(layout.query_tiles(lse, first, last)).exp_()
            grad_weights = self._tile_products("grad_weights", outs, values, count)
            kept = weights
            if window.dropout > 0.0:
                keep = self._keep(part, start, stop, first, last).to(self.wide)
                keep *= 1.0 / (1.0 - window.dropout)
                kept = weights * keep
                grad_weights *= keep
            grad_weights -= layout.query_tiles(delta.squeeze(-1), first, last)
            grad_scores = grad_weights.mul_(weights).to(query.dtype).flatten(0, 1)
            kept = kept.to(value.dtype).flatten(0, 1)
            slots = slice(first * tile, last * tile)
            grad_query[:, slots] = self.scratch.bmm("mixed", grad_scores, keys).view(group, -1, row)
            bmm = self.scratch.bmm
            self._spread_(grad_key, bmm("spread", grad_scores.transpose(1, 2), queries), first)
            self._spread_(grad_value, bmm("spread", kept.transpose(1, 2), outs), first)
        if self.call.scale != 1.0:
            grad_query *= self.call.scale
        return [grad_query, layout.fold_keys(grad_key), layout.fold_keys(grad_value)]

    def _spread_(self, total: Tensor, tiles: Tensor, first: int) -> None:
        """Add key gradients ``[G T', K, D]`` of overlapping tiles to ``[G, P', D]``, in place."""
        tile, num_keys = self.layout.tile, self.layout.num_keys
        group, _, row = total.shape
        tiles = tiles.view(group, -1, num_keys, row)
        count = tiles.shape[1]
        for offset in range(0, num_keys, tile):
            width = min(tile, num_keys - offset)
            begin = first * tile + offset
            target = total[:, begin : begin + count * tile].view(group, count, tile, row)
            target[:, :, :width] += tiles[:, :, offset : offset + width]


def forward(call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """See :class:`~reformer_hf.ops.windowed_attention.operators.Kernels`."""
    out_rows, lse, mass = _Kernel(call).forward()
    return _like_heads(out_rows, call.query), lse, mass


def backward(
    call: WindowedAttentionCall, grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """See :class:`~reformer_hf.ops.windowed_attention.operators.Kernels`."""
    query_rows, key_rows, value_rows = _Kernel(call).backward(
        _rows(grad_out), _rows(out), lse, mass
    )
    grad_key = None if key_rows is None else _like_heads(key_rows, call.query)
    return _like_heads(query_rows, call.query), grad_key, _like_heads(value_rows, call.query)
