"""LSH attention in vectorised PyTorch: the default on a CPU, and it runs on any accelerator.

No ``N x N`` tensor is formed. The sorted tokens of a row and head are cut into tiles of ``C``
queries, and the keys of a tile are read through an overlapping strided view of the gathered keys,
so that the look-back is not copied. Work proceeds in blocks of tiles that are gathered, multiplied
and reduced while they stay in the processor's cache, in fp32 (fp64 for fp64 inputs) whatever the
dtype of the inputs: products of such small matrices gain less from bf16 than its conversions cost.

The backward pass is written by hand from ``q, k, v, o, lse`` and the order (nothing else is kept):
with ``lse`` merged over the rounds,

    ``P = exp(S - lse)``, ``dV = P^T dO``, ``dP = dO V^T``, ``dS = P * (dP - rowsum(dO * O))``,

per round, summed over rounds; then through the normalisation of the keys. Nothing is propagated
through the merge of the rounds or the hash. Source: FlashAttention-2, section 3 (arXiv:2307.08691),
applied to the union of the rounds' windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.shared_keys import inverse_key_norm
from reformer_hf.ops.tile_arithmetic import (
    FLOOR,
    SCORE_ELEMENTS,
    Scratch,
    SoftmaxMerge,
    exp_,
    row_sums,
)
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.dropout import (
    keep_mask,
    key_codes,
    numbered_slices,
    query_codes,
)
from reformer_hf.ops.windowed_attention.slots import Block, Group, Line, SlotLayout

# Numbers of one kind (queries, say) of the slices that share a line, unless one slice has more.
_LINE_ELEMENTS = 1 << 20


def unsupported(call: WindowedAttentionCall) -> str | None:
    """Why this backend cannot serve the call: never; it runs on every device and dtype."""
    del call
    return None


def bytes_at_work(slices: int, length: int, head_size: int, reach: int) -> int:
    """About as many bytes as a backward pass in fp32 forms at a time, beside its results.

    Args:
        slices: rows times heads.
        length: tokens of each, ``N``.
        head_size: ``D``.
        reach: tokens before, or after, a token that it sees.
    """
    slices = min(max(1, _LINE_ELEMENTS // (length * head_size)), slices)
    # Gradients by slot, what is about to be added to their sums, and the sums of shared keys.
    lines = 6 * 4 * slices * length * head_size
    # Scores, visibility, weights and their gradients; and inputs of half as many keys.
    scores = min(SCORE_ELEMENTS, 2 * slices * length * reach)
    return lines + 5 * 4 * scores + 8 * 4 * scores * head_size // (2 * reach)


def _as_list(x: Tensor) -> Tensor:
    """``[B, H, N, D]`` as vectors ``[B N H, D]``; free where heads were split from a projection."""
    return x.transpose(1, 2).reshape(-1, x.shape[-1])


def empty_heads(x: Tensor) -> Tensor:
    """Memory like ``[B, H, N, D]``, but laid out as ``[B, N, H, D]``."""
    batch, heads, length, size = x.shape
    return x.new_empty((batch, length, heads, size)).transpose(1, 2)


class _Kernel:
    """The two walks over all tiles, forward and backward, of one call."""

    def __init__(self, call: WindowedAttentionCall) -> None:
        self.call = call
        self.window = call.window
        self.layout = SlotLayout(call)
        self.wide = wide_dtype(call.query)
        self.query_vectors = _as_list(call.query)
        self.key_vectors = None if call.key is None else _as_list(call.key)
        self.value_vectors = _as_list(call.value)
        self.scratch = Scratch(call.query.device)

    def _groups(self) -> Iterator[Group]:
        size = self.call.query.shape[-1]
        return self.layout.groups(max(1, _LINE_ELEMENTS // (self.layout.stride * size)))

    def _blocks(self, group: Group) -> Iterator[Block]:
        return self.layout.blocks(group.size, SCORE_ELEMENTS)

    # ---- what a block of tiles consists of ----

    def _query_tiles(self, x: Tensor, block: Block) -> Tensor:
        """Query slots of a line ``[S, D]`` as ``[T', C, D]``, a view."""
        return x[block.queries].view(block.count, block.tile, x.shape[-1])

    def _key_tiles(self, x: Tensor, block: Block) -> Tensor:
        """Key slots ``[n, D]`` of a block as ``[T', K, D]``, an overlapping view."""
        size = x.shape[-1]
        shape = (block.count, block.num_keys, size)
        return x.as_strided(shape, (block.tile * size, size, 1), x.storage_offset())

    def _load(self, line: Line, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries ``[T', C, D]``, keys and values ``[T', K, D]``, in sorted order."""
        gather = self.scratch.gather
        key_index = line.index[block.keys]
        value = gather("value", self.value_vectors, key_index)
        if self.key_vectors is None:
            shared = gather("shared", self.query_vectors, key_index)
            first = block.keys.start
            query = shared[block.queries.start - first : block.queries.stop - first]
            normed = self.scratch.take("normed", shared.shape, self.wide)
            key = torch.mul(shared, inverse_key_norm(shared), out=normed)
        else:
            query = gather("query", self.query_vectors, line.index[block.queries])
            key = gather("key", self.key_vectors, key_index)
        if self.call.scale != 1.0:
            query = query * self.call.scale
        query = query.view(block.count, block.tile, -1)
        return query, self._key_tiles(key, block), self._key_tiles(value, block)

    def _scores(self, line: Line, query: Tensor, key: Tensor, block: Block) -> Tensor:
        """``[T', C, K]`` scores, far below all others where a query does not see a key."""
        layout = self.layout
        shape = (block.count, block.tile, block.num_keys)
        if layout.band is None:
            scores = self.scratch.bmm("scores", query, key.transpose(1, 2))
        else:
            scores = self.scratch.take("scores", shape, self.wide)
            torch.baddbmm(layout.band.expand(shape), query, key.transpose(1, 2), out=scores)
        gap = self.scratch.take("gap", shape, self.wide)
        return layout.mask_scores_(scores, gap, line, block)

    def _codes(self, group: Group, line: Line) -> tuple[Tensor, Tensor]:
        """Codes of queries and keys ``[S]`` from which dropout is decided."""
        seed, layout = self.window.dropout_seed, self.layout
        device = line.token.device
        rows = torch.arange(layout.batch, device=device).unsqueeze(1)
        heads = torch.arange(layout.heads, device=device)
        index = numbered_slices(rows, heads, self.window.heads, layout.heads)
        index = group.select(index).reshape(-1, 1)
        tail = (0, layout.num_keys)
        codes = (
            query_codes(seed, index, line.hash_round, line.token),
            key_codes(seed, line.token),
        )
        query, key = (torch.nn.functional.pad(x.flatten(), tail) for x in codes)
        return query, key

    def _keep(self, codes: tuple[Tensor, Tensor], block: Block) -> Tensor:
        """``[T', C, K]``: 0 where a pair is dropped, else ``1 / (1 - dropout)``."""
        query = self.layout.query_tiles(codes[0], block)
        key = self.layout.key_tiles(codes[1], block)
        keep = keep_mask(query, key, self.window.dropout).to(self.wide)
        return keep.mul_(1.0 / (1.0 - self.window.dropout))

    # ---- forward ----

    def forward(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output ``[B, H, N, D]``, and ``lse`` and ``mass`` ``[B, H, N]``.

        ``mass`` is what ``exp(S - lse)`` sums to: 1, but for tokens that see only themselves, and
        more than once. Their ``lse`` is ``SELF_SCORE`` plus a small logarithm, which fp32 rounds to
        multiples of 1/128. ``None``: no token meets itself more than once.
        """
        call, layout = self.call, self.layout
        out = empty_heads(call.value)
        lse = torch.empty(call.query.shape[:3], dtype=self.wide, device=call.query.device)
        mass = torch.empty_like(lse) if layout.is_ring or layout.num_passes > 1 else None
        for group in self._groups():
            merged = SoftmaxMerge(self.scratch)
            for index in range(layout.num_passes):
                line = layout.build(index, group)
                mixed, highest, total = self._forward_pass(line, group)
                for slots in line.slot_of_token:
                    merged.add(mixed, highest, total, slots)
            shape = (*group.select(lse).shape, -1)
            mixed, own_lse, own_mass = merged.finish()
            group.select(out).copy_(mixed.view(shape))
            group.select(lse).copy_(own_lse.view(shape[:-1]))
            if mass is not None:
                group.select(mass).copy_(own_mass.view(shape[:-1]))
        return out, lse, mass

    def _forward_pass(self, line: Line, group: Group) -> tuple[Tensor, Tensor, Tensor]:
        """Per slot of a line: ``sum_j exp(S_j - m) v_j`` ``[S, D]``, ``m`` and its sum ``[S]``.

        ``m`` is the highest score of the slot. Slots of nobody hold anything.
        """
        layout, take = self.layout, self.scratch.take
        slots = line.index.shape[0]
        mixed = take("mixed", (slots, self.value_vectors.shape[-1]), self.wide)
        highest, total = (take(name, (slots,), self.wide) for name in ("highest", "total"))
        codes = self._codes(group, line) if self.window.dropout > 0.0 else None
        for block in self._blocks(group):
            query, key, value = self._load(line, block)
            scores = self._scores(line, query, key, block)
            top = layout.query_tiles(highest, block)
            torch.amax(scores, dim=-1, keepdim=True, out=top)
            weights = exp_(scores.sub_(top.clamp_(min=FLOOR)))
            if block.times is not None:
                weights *= block.times
            layout.query_tiles(total, block).copy_(row_sums(weights))
            if codes is not None:
                weights *= self._keep(codes, block)
            torch.bmm(weights, value, out=self._query_tiles(mixed, block))
        return mixed, highest, total

    # ---- backward ----

    def backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of query, key (unless shared) and value."""
        call, layout = self.call, self.layout
        grad_vectors = _as_list(grad_out)
        grads = [empty_heads(call.query), empty_heads(call.value)]
        if call.key is not None:
            grads.insert(1, empty_heads(call.key))
        for group in self._groups():
            own_grad, own_out = (group.select(x).to(self.wide) for x in (grad_out, out))
            product = self.scratch.take("part", own_grad.shape, self.wide)
            torch.mul(own_grad, own_out, out=product)
            per_token = [
                group.select(lse).clamp(min=FLOOR).flatten(0, 1),
                product.sum(dim=-1).flatten(0, 1),
            ]
            if mass is not None:
                # P = exp(S - lse) / mass always stands next to dO or delta: these carry the factor.
                per_token.append(group.select(mass).reciprocal().flatten(0, 1))
                per_token[1] *= per_token[2]
            sums = self._sums(grads, group)
            for index in range(layout.num_passes):
                line = layout.build(index, group)
                by_slot = self._backward_pass(line, group, grad_vectors, per_token)
                for own, slots in enumerate(line.slot_of_token):
                    for total, x in zip(sums, by_slot, strict=True):
                        part = self.scratch.gather("part", x, slots).view(total.shape)
                        if index == own == 0:
                            total.copy_(part)
                        else:
                            total.add_(part)
            self._finish_(sums, group)
            own_sums = sums if call.key is not None else [sums[0], sums[2]]
            for grad, total in zip(grads, own_sums, strict=True):
                if grad.dtype != self.wide:
                    group.select(grad).copy_(total)
        return grads[0], grads[1] if call.key is not None else None, grads[-1]

    def _sums(self, grads: list[Tensor], group: Group) -> list[Tensor]:
        """Where gradients of queries, keys and values ``[b, h, N, D]`` are summed over the rounds.

        Where they belong, if that is wide enough; no one asks for those of shared keys.
        """
        places = [x if x.dtype == self.wide else None for x in map(group.select, grads)]
        if self.call.key is None:
            places.insert(1, None)
        shape = group.select(self.call.query).shape
        return [
            self.scratch.take(f"sum {i}", shape, self.wide) if x is None else x
            for i, x in enumerate(places)
        ]

    def _finish_(self, sums: list[Tensor], group: Group) -> None:
        """From gradients of what was multiplied to those of what was given, in place."""
        grad_query, grad_key, _ = sums
        if self.call.scale != 1.0:
            grad_query *= self.call.scale
        if self.call.key is None:
            # k = q s with s = (|q|^2 + D eps)^(-1/2), so dq += s (dk - k (k . dk)).
            query = group.select(self.call.query).to(self.wide)
            norm = inverse_key_norm(query)
            key, product = (
                self.scratch.take(name, query.shape, self.wide) for name in ("part", "grad_value")
            )
            torch.mul(query, norm, out=key)
            torch.mul(key, grad_key, out=product)
            grad_key.addcmul_(key, product.sum(dim=-1, keepdim=True), value=-1)
            grad_query.addcmul_(grad_key, norm)

    def _backward_pass(
        self, line: Line, group: Group, grad_vectors: Tensor, per_token: list[Tensor]
    ) -> list[Tensor]:
        """Gradients ``[S, D]`` by slot: of the (scaled) queries, keys and values of one pass.

        ``per_token``: ``lse``, ``delta = rowsum(dO * O)`` and, if it matters, ``1 / mass``, each
        ``[G, N]``.
        """
        layout, scratch = self.layout, self.scratch
        slots, size = line.index.shape[0], self.query_vectors.shape[-1]
        # In slots of nobody exp(S - lse) must vanish whatever stands there.
        lse, delta, *factor = (
            layout.by_slot(x, line, fill)
            for x, fill in zip(per_token, (math.inf, 0.0, 0.0), strict=False)
        )
        codes = self._codes(group, line) if self.window.dropout > 0.0 else None
        grad_query = scratch.take("grad_query", (slots, size), self.wide)
        grad_key = scratch.take("grad_key", (slots, size), self.wide).zero_()
        grad_value = scratch.take("grad_value", (slots, size), self.wide).zero_()
        for block in self._blocks(group):
            query, key, value = self._load(line, block)
            outs = scratch.gather("outs", grad_vectors, line.index[block.queries])
            outs = outs.view(query.shape)
            if factor:
                outs *= layout.query_tiles(factor[0], block)
            scores = self._scores(line, query, key, block)
            weights = exp_(scores.sub_(layout.query_tiles(lse, block)))
            if block.times is not None:
                weights *= block.times
            grad_weights = scratch.bmm("grad_weights", outs, value.transpose(1, 2))
            kept = weights
            if codes is not None:
                keep = self._keep(codes, block)
                kept = weights * keep
                grad_weights *= keep
            grad_weights -= layout.query_tiles(delta, block)
            grad_scores = grad_weights.mul_(weights)
            torch.bmm(grad_scores, key, out=self._query_tiles(grad_query, block))
            self._spread_(
                grad_key, scratch.bmm("spread", grad_scores.transpose(1, 2), query), block
            )
            self._spread_(grad_value, scratch.bmm("spread", kept.transpose(1, 2), outs), block)
        return [grad_query, layout.fold_keys(grad_key), layout.fold_keys(grad_value)]

    def _spread_(self, total: Tensor, tiles: Tensor, block: Block) -> None:
        """Add key gradients ``[T', K, D]`` of overlapping tiles to a line ``[S, D]``, in place."""
        count, num_keys, size = tiles.shape
        tile = block.tile if count > 1 else num_keys
        for offset in range(0, num_keys, tile):
            width = min(tile, num_keys - offset)
            begin = block.keys.start + offset
            target = total[begin : begin + count * tile].view(count, tile, size)
            target[:, :width] += tiles[:, offset : offset + width]


def forward(call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, ``lse`` and ``mass``, as :class:`~.operators.Kernels` has it."""
    return _Kernel(call).forward()


def backward(
    call: WindowedAttentionCall, grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of query, key and value, as :class:`~.operators.Kernels` has it."""
    return _Kernel(call).backward(grad_out, out, lse, mass)
