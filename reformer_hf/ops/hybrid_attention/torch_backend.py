"""Hybrid attention in vectorised PyTorch: the default on a CPU, and it runs on any accelerator.

Every row and key-value head is a *slice*, walked by itself: once over the tiles of its local window
(with the sinks beside them), then, per level and round, over the tiles of a staircase. The softmax
over the union is merged from these parts. Scores and sums are in fp32 (fp64 for fp64 inputs).

A pair that several parts would show counts in the first of them: rounds look up keys outside the
sinks and the local window only, and a round leaves out what a round before it has shown.

The backward pass walks the same tiles, from ``q, k, v, o, lse`` alone, with the merged ``lse``:

    ``P = exp(S - lse)``, ``dV = P^T dO``, ``dP = dO V^T``, ``dS = P * (dP - rowsum(dO * O))``.

Source: FlashAttention-2, section 3 (arXiv:2307.08691), applied to the union.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import (
    Gradients,
    HybridCall,
    backward_by_row,
    empty_output,
    forward_by_row,
)
from reformer_hf.ops.hybrid_attention.local_band import HeadVectors, LocalBand
from reformer_hf.ops.hybrid_attention.query_key_hashing import hash_queries_and_keys, key_centre
from reformer_hf.ops.hybrid_attention.staircase import (
    TILE,
    Places,
    Staircase,
    build_staircase,
    find_places,
)
from reformer_hf.ops.hybrid_attention.window import Level, levels
from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.tile_arithmetic import FLOOR, SCORE_ELEMENTS, Scratch, SoftmaxMerge, exp_
from reformer_hf.ops.windowed_attention.dropout import keep_mask, key_codes, query_codes

# Times the distance between places, it is taken from scores of pairs that do not see each other:
# far above every score even at distance one half, and finite at every distance that there can be.
_FAR = 1e30
# A place from which nothing is seen.
_NOWHERE = -1e7


def unsupported(call: HybridCall) -> str | None:
    """Why this backend cannot serve the call: never; it runs on every device and dtype."""
    del call
    return None


def bytes_at_work(length: int, head_size: int, group: int = 1) -> int:
    """About as many bytes as a backward pass in fp32 forms at a time, beside its results.

    Args:
        length: tokens, ``N``.
        head_size: ``D``.
        group: query heads of a key-value head, ``G``.
    """
    # Of one slice: queries, gradients and what is merged, by slot; keys, values and their
    # gradients, sorted.
    lines = 4 * (6 * group + 4) * length * head_size
    # Scores, distances of places, weights and their gradients.
    return lines + 5 * 4 * SCORE_ELEMENTS


@dataclass(frozen=True)
class _Round:
    """One round of one level, in one direction.

    Attributes:
        slots: ``[Q]`` int64, the slots of the level's queries in the local band.
        numbers: ``[Q]`` int64, their numbers ``g M + m``.
        places: of all rounds of the level in this direction.
        index: of the round.
        stairs: its tiles.
        query_places: ``[index + 1, tiles, C, 1]``, by slot of the tiles, in this round and those
            before it.
        key_places: ``[index + 1, key slots]``, likewise.
    """

    slots: Tensor
    numbers: Tensor
    places: Places
    index: int
    stairs: Staircase
    query_places: Tensor
    key_places: Tensor


class _Slice:
    """The walks over the tiles of one row and key-value head of a call without padding."""

    def __init__(self, call: HybridCall, row: int, head: int, scratch: Scratch) -> None:
        self.call, self.window = call, call.window
        self.row, self.head, self.scratch = row, head, scratch
        self.wide = wide_dtype(call.query)
        group = call.group_size
        self.heads = slice(head * group, (head + 1) * group)
        self.own_query = call.query[row, self.heads]
        self.key = call.key[row, head].to(self.wide)
        self.value = call.value[row, head].to(self.wide)
        # Where they lie in memory as they should, they are not copied.
        self.key_list, self.value_list = (
            HeadVectors.of(x.unsqueeze(0)) for x in (self.key, self.value)
        )
        self.band = LocalBand(
            group,
            call.query.shape[2],
            call.key.shape[2],
            self.window.local_window,
            self.window.causal,
            call.query.device,
        )
        self.query = HeadVectors.of(self.own_query)
        self.mask = self.band.mask.to(self.wide)
        self.sinks = min(self.window.sink_tokens, self.key.shape[0])
        if self.window.dropout > 0.0:
            self.query_code, self.key_code = self._codes()

    # ---- vectors of queries ----

    def _tiles_of(self, name: str, x: Tensor, start: int, stop: int) -> Tensor:
        """``[G, M, D]`` at the tiles ``start .. stop`` of the band, ``[T', G C, D]`` (a copy)."""
        out = self.scratch.take(name, (stop - start, self.band.rows, x.shape[-1]), self.wide)
        return self.band.load_tiles(x, out, start)

    def _chosen(self, name: str, vectors: HeadVectors, numbers: Tensor) -> Tensor:
        """The vectors with these numbers, by tiles of a staircase ``[T', C, D]`` (a copy)."""
        found = self.scratch.gather(name, vectors.flat, vectors.places(numbers))
        return found.view(-1, TILE, found.shape[-1])

    # ---- dropout ----

    def _codes(self) -> tuple[Tensor, Tensor]:
        """Codes of query slots and keys, from which dropout is decided."""
        seed, band = self.window.dropout_seed, self.band
        first, all_heads = self.call.query_numbering
        head = torch.arange(band.group, device=band.device) + self.head * band.group + first
        index = head + (self.row + self.call.first_row) * all_heads
        index = index.view(1, -1, 1).expand(band.tiles, -1, band.tile).flatten()
        rounds = torch.zeros_like(index)
        key_position = torch.arange(band.length, device=band.device)
        return (
            query_codes(seed, index, rounds, band.position),
            key_codes(seed, key_position),
        )

    def _keep(self, query_code: Tensor, key_code: Tensor) -> Tensor:
        """0 where a pair is dropped, else ``1 / (1 - dropout)``."""
        keep = keep_mask(query_code, key_code, self.window.dropout).to(self.wide)
        return keep.mul_(1.0 / (1.0 - self.window.dropout))

    # ---- the local window and the sinks ----

    def _local_blocks(self) -> Iterator[tuple[int, int]]:
        """Tiles of the band that are processed together, ``start .. stop``."""
        band = self.band
        step = max(1, SCORE_ELEMENTS // (band.rows * band.num_keys))
        for start in range(0, band.tiles, step):
            yield start, min(start + step, band.tiles)

    def _blocks(self) -> tuple[Tensor, Tensor]:
        """Keys and values by slot of the band, in the memory that rounds sort them into."""
        parts = (("sorted keys", self.key), ("sorted values", self.value))
        key, value = (
            self.band.to_blocks(
                x, self.scratch.take(name, (self.band.key_slots, x.shape[-1]), self.wide)
            )
            for name, x in parts
        )
        return key, value

    def _local_scores(self, query: Tensor, key_blocks: Tensor, start: int, stop: int) -> Tensor:
        """``[T', G C, K]``, minus infinity where a query does not see a key."""
        band = self.band
        shape = (stop - start, band.rows, band.num_keys)
        key = band.key_tiles(key_blocks, start, stop)
        scores = self.scratch.take("scores", shape, self.wide)
        torch.baddbmm(self.mask.expand(shape), query, key.transpose(1, 2), out=scores)
        outside = band.outside(start, stop)
        return scores if outside is None else scores.add_(outside)

    def _sink_scores(self, query: Tensor, slots: slice) -> Tensor:
        """``[T', G C, S]``, minus infinity where a sink is within the local window, or later."""
        key = self.key[: self.sinks]
        scores = torch.matmul(query, key.T)
        distance = self.band.position[slots].view(*query.shape[:2], 1)
        distance = distance - torch.arange(self.sinks, device=key.device)
        if not self.window.causal:
            distance = distance.abs()
        return scores.masked_fill_(distance < self.window.local_window, -torch.inf)

    def _local_keep(self, slots: slice, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Dropout of the local scores and of the sinks' scores."""
        band = self.band
        query = self.query_code[slots].view(stop - start, band.rows, 1)
        key = self.scratch.take("key codes", (band.key_slots, 1), self.key_code.dtype)
        key = band.to_blocks(self.key_code.unsqueeze(-1), key)
        key = band.key_tiles(key, start, stop).transpose(1, 2)
        return self._keep(query, key), self._keep(query, self.key_code[: self.sinks])

    def _local_forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """``sum exp(S - m) v`` ``[slots, Dv]``, ``m`` and ``sum exp(S - m)`` ``[slots]``."""
        band, size = self.band, self.value.shape[-1]
        key_blocks, value_blocks = self._blocks()
        mixed = self.value.new_empty((band.tiles * band.rows, size))
        highest, total = (self.value.new_empty(mixed.shape[0]) for _ in range(2))
        for start, stop in self._local_blocks():
            slots = slice(start * band.rows, stop * band.rows)
            query = self._tiles_of("queries", self.own_query, start, stop).mul_(self.call.scale)
            scores = self._local_scores(query, key_blocks, start, stop)
            top = scores.amax(dim=-1, keepdim=True)
            sinks = self._sink_scores(query, slots) if self.sinks else None
            if sinks is not None:
                top = torch.maximum(top, sinks.amax(dim=-1, keepdim=True))
            top = top.clamp_(min=FLOOR)
            weights = exp_(scores.sub_(top))
            own_total = weights.sum(dim=-1, keepdim=True)
            if sinks is not None:
                sinks = exp_(sinks.sub_(top))
                own_total += sinks.sum(dim=-1, keepdim=True)
            if self.window.dropout > 0.0:
                keep, keep_sinks = self._local_keep(slots, start, stop)
                weights *= keep
                sinks = None if sinks is None else sinks.mul_(keep_sinks)
            out = mixed[slots].view(stop - start, band.rows, size)
            torch.bmm(weights, band.key_tiles(value_blocks, start, stop), out=out)
            if sinks is not None:
                out += torch.matmul(sinks, self.value[: self.sinks])
            highest[slots], total[slots] = top.flatten(), own_total.flatten()
        return mixed, highest, total

    def _local_backward(self, grads: _SliceGradients) -> None:
        """Add what the local window and the sinks give to the gradients, in place."""
        band = self.band
        key_blocks, value_blocks = self._blocks()
        grad_key = self.scratch.take("grad_key", key_blocks.shape, self.wide).zero_()
        grad_value = self.scratch.take("grad_value", value_blocks.shape, self.wide).zero_()
        for start, stop in self._local_blocks():
            slots = slice(start * band.rows, stop * band.rows)
            shape = (stop - start, band.rows, -1)
            query = self._tiles_of("queries", self.own_query, start, stop).mul_(self.call.scale)
            outs = self._tiles_of("outs", grads.outs, start, stop)
            lse, delta = grads.lse[slots].view(shape), grads.delta[slots].view(shape)
            key, value = (band.key_tiles(x, start, stop) for x in (key_blocks, value_blocks))
            scores = self._local_scores(query, key_blocks, start, stop)
            weights = exp_(scores.sub_(lse))
            grad_weights = self.scratch.bmm("grad_weights", outs, value.transpose(1, 2))
            kept, keeps = weights, None
            if self.window.dropout > 0.0:
                keeps = self._local_keep(slots, start, stop)
                kept = weights * keeps[0]
                grad_weights *= keeps[0]
            spread = self.scratch.bmm("spread", kept.transpose(1, 2), outs)
            band.spread_(grad_value, spread, start)
            grad_scores = grad_weights.sub_(delta).mul_(weights)
            grad_query = self.scratch.bmm("grad_query", grad_scores, key)
            spread = self.scratch.bmm("spread", grad_scores.transpose(1, 2), query)
            band.spread_(grad_key, spread, start)
            if self.sinks:
                weights = exp_(self._sink_scores(query, slots).sub_(lse))
                grad_weights = torch.matmul(outs, self.value[: self.sinks].T)
                kept = weights
                if keeps is not None:
                    kept = weights * keeps[1]
                    grad_weights *= keeps[1]
                grad_scores = grad_weights.sub_(delta).mul_(weights)
                grad_query += torch.matmul(grad_scores, self.key[: self.sinks])
                flat = (stop - start) * band.rows
                grads.value[: self.sinks] += kept.view(flat, -1).T @ outs.view(flat, -1)
                grads.key[: self.sinks] += grad_scores.view(flat, -1).T @ query.view(flat, -1)
            band.store_tiles(grad_query, grads.query, start)
        band.add_blocks_(grads.key, grad_key)
        band.add_blocks_(grads.value, grad_value)

    # ---- rounds ----

    def _levels(self) -> tuple[Level, ...]:
        return levels(self.window, self.band.first_query, self.band.length)

    def _rounds(self, level: Level) -> Iterator[_Round]:
        """The rounds of a level, in both directions where the model looks ahead."""
        call, band, window = self.call, self.band, self.window
        own = slice(level.start - band.first_query, level.stop - band.first_query)
        key = call.key[self.row : self.row + 1, self.head : self.head + 1]
        query_buckets, key_buckets = hash_queries_and_keys(
            self.own_query[None, :, own],
            key[:, :, : level.stop],
            key_centre(key, level),
            window,
            level,
            head=self.head,
            num_heads=call.key.shape[1],
        )
        query_buckets, key_buckets = query_buckets[0, 0].flatten(1), key_buckets[0, 0]
        slots = band.slots_of(level.start, level.stop)
        numbers = band.numbers_of(level.start, level.stop)
        for reach, ahead in ((window.keys_before, False), (window.keys_after, True)):
            if reach == 0:
                continue
            places = find_places(
                query_buckets,
                key_buckets,
                band.position[slots],
                local_window=window.local_window,
                reach=reach,
                ahead=ahead,
                dtype=self.wide,
            )
            for index in range(window.num_hashes):
                stairs = build_staircase(places, index)
                until = slice(index + 1)
                at_query = places.query_place[until, stairs.query_of_slot]
                at_query = at_query.masked_fill(~stairs.filled, _NOWHERE)
                at_key = places.key_place[until, stairs.key_of_slot]
                # Empty key slots are as far away as can be, from queries without a place as well.
                at_key = at_key.masked_fill(~stairs.filled_keys, -2 * _NOWHERE)
                tiles = at_query.view(index + 1, -1, TILE, 1)
                yield _Round(slots, numbers, places, index, stairs, tiles, at_key)

    def _tile_blocks(self, stairs: Staircase) -> Iterator[slice]:
        """Tiles of a staircase that are processed together."""
        count = stairs.block_of_tile.shape[0]
        step = max(1, SCORE_ELEMENTS // (TILE * stairs.num_keys))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def _key_tiles(self, name: str, x: Tensor, stairs: Staircase, first: Tensor) -> Tensor:
        """``[key slots, ..]`` as ``[T', K, ..]`` (a copy), for tiles with these first blocks."""
        size = x.shape[-1] if x.dim() > 1 else 1
        blocks = x.shape[0] // stairs.block - stairs.lookback
        step = stairs.block * size
        view = x.as_strided((blocks, stairs.num_keys * size), (step, 1), x.storage_offset())
        out = self.scratch.take(name, (first.shape[0], stairs.num_keys * size), x.dtype)
        torch.index_select(view, 0, first, out=out)
        return out.view(first.shape[0], stairs.num_keys, size)

    def _scores(self, turn: _Round, tiles: slice, query: Tensor, key: Tensor) -> Tensor:
        """``[T', C, K]``, far below all others where a query does not see a key in this round.

        Everything is arithmetic, because comparisons and selections are slower on a CPU.
        """
        stairs, middle = turn.stairs, (turn.places.reach - 1) / 2
        scores = self.scratch.bmm("scores", query, key.transpose(1, 2))
        gap = self.scratch.take("gap", scores.shape, turn.key_places.dtype)
        first = stairs.block_of_tile[tiles]

        def distance(index: int, out: Tensor) -> Tensor:
            at_key = self._key_tiles("at_key", turn.key_places[index], stairs, first)
            return torch.sub(
                turn.query_places[index, tiles], at_key.transpose(1, 2), out=out
            ).abs_()

        # In the window of this round: at most (W - 1) / 2 from the middle of it.
        scores.add_(distance(turn.index, gap).sub_(middle).clamp_(min=0), alpha=-_FAR)
        if turn.index:
            # And in no window of the rounds before: at least (W + 1) / 2 from all their middles.
            nearest = distance(0, self.scratch.take("nearest", gap.shape, gap.dtype))
            for index in range(1, turn.index):
                torch.minimum(nearest, distance(index, gap), out=nearest)
            scores.add_(nearest.sub_(middle + 1).clamp_(max=0), alpha=_FAR)
        return scores

    def _tile_keep(self, turn: _Round, tiles: slice) -> Tensor:
        """Dropout of the scores of some tiles."""
        stairs = turn.stairs
        slots = turn.slots[stairs.query_of_slot].view(-1, TILE)[tiles]
        keys = self.key_code[stairs.key_of_slot]
        keys = self._key_tiles("codes", keys, stairs, stairs.block_of_tile[tiles])
        return self._keep(self.query_code[slots].unsqueeze(-1), keys.transpose(1, 2))

    def _sorted(self, stairs: Staircase) -> tuple[Tensor, Tensor]:
        """Keys and values by slot of the blocks of a staircase (copies)."""
        parts = (("sorted keys", self.key_list), ("sorted values", self.value_list))
        keys, values = (
            self.scratch.gather(name, x.flat, x.places(stairs.key_of_slot)) for name, x in parts
        )
        return keys, values

    def _round_forward(self, turn: _Round) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_local_forward`, by slot of the staircase."""
        stairs, take = turn.stairs, self.scratch.take
        slots, size = stairs.query_of_slot.shape[0], self.value.shape[-1]
        mixed = take("mixed", (slots, size), self.wide)
        highest, total = (take(name, (slots,), self.wide) for name in ("highest", "total"))
        keys, values = self._sorted(stairs)
        numbers = turn.numbers[stairs.query_of_slot]
        for tiles in self._tile_blocks(stairs):
            own = slice(tiles.start * TILE, tiles.stop * TILE)
            first = stairs.block_of_tile[tiles]
            query = self._chosen("query", self.query, numbers[own]).mul_(self.call.scale)
            key = self._key_tiles("key", keys, stairs, first)
            scores = self._scores(turn, tiles, query, key)
            top = highest[own].view(-1, TILE, 1)
            torch.amax(scores, dim=-1, keepdim=True, out=top)
            weights = exp_(scores.sub_(top.clamp_(min=FLOOR)))
            torch.sum(weights, dim=-1, keepdim=True, out=total[own].view(-1, TILE, 1))
            if self.window.dropout > 0.0:
                weights *= self._tile_keep(turn, tiles)
            value = self._key_tiles("value", values, stairs, first)
            torch.bmm(weights, value, out=mixed[own].view(-1, TILE, size))
        return mixed, highest, total

    def _round_backward(self, turn: _Round, grads: _SliceGradients) -> None:
        """Add what one round gives to the gradients, in place."""
        stairs, scratch, size = turn.stairs, self.scratch, self.key.shape[-1]
        out_list, query_list = HeadVectors.of(grads.outs), HeadVectors.of(grads.query)
        keys, values = self._sorted(stairs)
        grad_key = scratch.take("grad_key", keys.shape, self.wide).zero_()
        grad_value = scratch.take("grad_value", values.shape, self.wide).zero_()
        query_slots, numbers = (x[stairs.query_of_slot] for x in (turn.slots, turn.numbers))
        # Slots without a query hold query 0: what they add to its gradient is zero.
        lse = grads.lse[query_slots].masked_fill_(~stairs.filled, math.inf)
        delta = grads.delta[query_slots]
        for tiles in self._tile_blocks(stairs):
            own = slice(tiles.start * TILE, tiles.stop * TILE)
            first = stairs.block_of_tile[tiles]
            query = self._chosen("query", self.query, numbers[own]).mul_(self.call.scale)
            outs = self._chosen("chosen outs", out_list, numbers[own])
            key = self._key_tiles("key", keys, stairs, first)
            value = self._key_tiles("value", values, stairs, first)
            scores = self._scores(turn, tiles, query, key)
            weights = exp_(scores.sub_(lse[own].view(-1, TILE, 1)))
            grad_weights = scratch.bmm("grad_weights", outs, value.transpose(1, 2))
            kept = weights
            if self.window.dropout > 0.0:
                keep = self._tile_keep(turn, tiles)
                kept = weights * keep
                grad_weights *= keep
            self._spread_(
                grad_value, scratch.bmm("spread", kept.transpose(1, 2), outs), turn, first
            )
            grad_scores = grad_weights.sub_(delta[own].view(-1, TILE, 1)).mul_(weights)
            grad_query = scratch.bmm("grad_query", grad_scores, key)
            at = query_list.places(numbers[own])
            query_list.flat.index_add_(0, at, grad_query.view(-1, size))
            spread = scratch.bmm("spread", grad_scores.transpose(1, 2), query)
            self._spread_(grad_key, spread, turn, first)
        order = turn.places.key_order[turn.index]
        held = slice(stairs.lookback * stairs.block, None)
        for total, sorted_ in ((grads.key, grad_key), (grads.value, grad_value)):
            lines = HeadVectors.of(total.unsqueeze(0))
            lines.flat.index_add_(0, lines.places(order), sorted_[held][: order.shape[0]])

    @staticmethod
    def _spread_(total: Tensor, tiles: Tensor, turn: _Round, first: Tensor) -> None:
        """Add key gradients ``[T', K, D]`` of tiles to ``[key slots, D]``, in place."""
        stairs, size = turn.stairs, tiles.shape[-1]
        by_block = total.view(-1, stairs.block * size)
        parts = tiles.view(tiles.shape[0], stairs.lookback + 1, -1)
        for index in range(stairs.lookback + 1):
            by_block.index_add_(0, first + index, parts[:, index])

    # ---- all of it ----

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output ``[G, M, Dv]`` and ``lse`` ``[G, M]``."""
        mixed, highest, total = self._local_forward()
        for level in self._levels():
            merge: SoftmaxMerge | None = None
            for turn in self._rounds(level):
                if merge is None:
                    merge, slots = SoftmaxMerge(self.scratch), turn.slots
                    merge.add(mixed, highest, total, slots)
                merge.add(*self._round_forward(turn), turn.stairs.slot_of_query)
            if merge is not None:
                mixed[slots], highest[slots], total[slots] = merge.sums
        out = mixed.div_(total.unsqueeze(-1))
        lse = highest + total.log()
        return self.band.from_slots(out), self.band.from_slots(lse)

    def backward(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, results: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Write the gradients of queries ``[G, M, D]``, keys and values ``[N, D]``."""
        band = self.band
        # Narrow results are summed in buffers.
        sums = [
            x if x.dtype == self.wide else x.new_empty(x.shape, dtype=self.wide) for x in results
        ]
        # Head by head, so that no products of all outputs are formed.
        delta = [
            (g.to(self.wide) * o.to(self.wide)).sum(dim=-1)
            for g, o in zip(grad_out, out, strict=True)
        ]
        grads = _SliceGradients(
            outs=grad_out,
            # In slots without a query exp(S - lse) must vanish whatever stands there.
            lse=band.to_slots(lse, fill=math.inf),
            delta=band.to_slots(torch.stack(delta)),
            query=sums[0],
            key=sums[1].zero_(),
            value=sums[2].zero_(),
        )
        self._local_backward(grads)
        for level in self._levels():
            for turn in self._rounds(level):
                self._round_backward(turn, grads)
        grads.query.mul_(self.call.scale)
        for result, total in zip(results, sums, strict=True):
            if result is not total:
                result.copy_(total)


@dataclass(frozen=True)
class _SliceGradients:
    """What the backward pass of a slice reads, and what it adds up.

    Attributes:
        outs: gradient of the output, ``[G, M, Dv]``.
        lse: ``[slots]``.
        delta: ``rowsum(dO * O)``, ``[slots]``.
        query: gradient of the scaled queries, ``[G, M, D]``.
        key: likewise of the keys, ``[N, D]``.
        value: ``[N, Dv]``.
    """

    outs: Tensor
    lse: Tensor
    delta: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def forward(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, M, Dv]``, laid out as ``[B, M, H, Dv]``, and ``lse`` ``[B, H, M]``."""
    scratch = Scratch(call.query.device)

    def run(call: HybridCall) -> tuple[Tensor, Tensor]:
        out = empty_output(call.query, call.value)
        lse = torch.empty(call.query.shape[:3], dtype=wide_dtype(call.query), device=out.device)
        for own in _slices(call, scratch):
            out[own.row, own.heads], lse[own.row, own.heads] = own.forward()
        return out, lse

    return forward_by_row(call, run)


def backward(call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor) -> Gradients:
    """Gradients of query, key and value, laid out as the output."""
    scratch = Scratch(call.query.device)

    def run(call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor) -> Gradients:
        query, key, value = (empty_output(x, x) for x in (call.query, call.key, call.value))
        for own in _slices(call, scratch):
            at, held = (own.row, own.heads), (own.row, own.head)
            own.backward(grad_out[at], out[at], lse[at], (query[at], key[held], value[held]))
        return query, key, value

    return backward_by_row(call, grad_out, out, lse, run)


def _slices(call: HybridCall, scratch: Scratch) -> Iterator[_Slice]:
    """The slices of a call without padding."""
    for row in range(call.key.shape[0]):
        for head in range(call.key.shape[1]):
            yield _Slice(call, row, head, scratch)
