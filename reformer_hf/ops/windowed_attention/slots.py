"""Sorted slots: which token stands in which slot, and which slots see each other.

The vectorised backend works on *passes*. In the ``window`` pattern a pass is one hash round; in
the ``chunk`` pattern it is the ring of all rounds' chunks. In a pass the tokens of one row and head
(a *slice*) stand in ``slots`` sorted slots, with ``before`` slots in front of them and at least
``after`` behind them, which belong to nobody in a window and repeat the ring's other end in a ring.

The slices of a group stand behind one another in one :class:`Line`, ``stride`` slots each, cut
into tiles of ``C`` query slots. Tile ``t`` of the line holds the queries in the slots
``t C + before .. t C + before + C`` and may see the keys in the slots ``t C .. t C + K`` with
``K = before + C + after``: the same for all tiles, wherever a slice begins. Queries in slots that
belong to nobody see nothing that matters, and nobody asks for them.

The tiles of a ring are its chunks. So that they are alike, the last chunk of a round is filled up
with empty slots, or all are as long as the sequence, if one chunk holds it. Chunks so long that
many could be empty keep the slots that tokens stand in, and are processed each by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from reformer_hf.ops.attention_window import SELF_SCORE
from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.sorting import identity_order, spaced_rank
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

# Tag of a slot that belongs to nobody; buckets and positions are not negative.
_NOBODY = -1
# Times the number of buckets between query and key, it is taken from their score: far above every
# score even for one bucket, and finite for as many as there can be.
_FAR = 1e30
_MIN_TILE, _MAX_TILE = 16, 128
# Scores of a chunk up to which chunks that are alike, but partly empty, are faster than others.
_FILLED_UP_SCORES = 1 << 17


@dataclass(frozen=True)
class Group:
    """Slices that are processed together: some heads of one row, or all heads of some rows."""

    rows: slice
    heads: slice

    @property
    def size(self) -> int:
        """Number of slices, ``G``."""
        return (self.rows.stop - self.rows.start) * (self.heads.stop - self.heads.start)

    def select(self, x: Tensor) -> Tensor:
        """The group's part ``[b, h, ..]`` of ``[B, H, ..]``; a view."""
        return x[self.rows, self.heads]

    def select_order(self, x: Tensor) -> Tensor:
        """The group's part ``[G, ..]`` of ``[B', H', ..]``, where 1 stands for all."""
        part = x if x.shape[0] == 1 else x[self.rows]
        part = part if x.shape[1] == 1 else part[:, self.heads]
        rows, heads = self.rows.stop - self.rows.start, self.heads.stop - self.heads.start
        return part.expand(rows, heads, *x.shape[2:]).flatten(0, 1)


@dataclass(frozen=True)
class Block:
    """Tiles that are processed together.

    Attributes:
        queries: slots of a line in which their queries stand, ``T' C`` of them.
        keys: slots of a line in which their keys stand.
        count: tiles, ``T'``.
        times: ``[K]``, how often a tile sees each key slot; ``None``: once.
    """

    queries: slice
    keys: slice
    count: int
    times: Tensor | None = None

    @property
    def tile(self) -> int:
        """Query slots of a tile, ``C``."""
        return (self.queries.stop - self.queries.start) // self.count

    @property
    def num_keys(self) -> int:
        """Key slots that a tile may see, ``K``."""
        return self.keys.stop - self.keys.start - (self.count - 1) * self.tile


@dataclass(frozen=True)
class Line:
    """One pass over a group of ``G`` slices, as a line of ``S = G * stride + K`` slots.

    Attributes:
        index: ``[S]`` int64, which of the vectors ``[B N H, D]`` stands in each slot (any where
            there is no token).
        tag: ``[S]``, from which visibility is decided: buckets in fp32 or fp64 (``window``) or
            positions in int32 (``chunk``).
        token: ``[G, stride]`` int64, position of the token in each slot.
        hash_round: ``[stride]`` int32, hash round of each slot.
        votes: ``[R, S]`` int32, where the token stands in every round; ``None`` where duplicates
            count.
        slot_of_token: ``[copies, G, N]`` int64, the slots of the line in which a token stands.
    """

    index: Tensor
    tag: Tensor
    token: Tensor
    hash_round: Tensor
    votes: Tensor | None
    slot_of_token: Tensor


class SlotLayout:
    """The passes of one call, and the rules of visibility within them.

    Attributes:
        length, slots: tokens ``N``, and query slots of a slice.
        tile: ``C``, at most.
        before, after: key slots before the first tile of a slice and after the last.
        num_keys: key slots that a tile may see, ``K``, at most.
        stride: slots of a slice in a line; a multiple of ``C`` where all tiles are alike.
        num_passes: passes over the slots.
    """

    def __init__(self, call: WindowedAttentionCall) -> None:
        window = call.window
        self.batch, self.heads, self.length, _ = call.query.shape
        length, device = self.length, call.query.device
        self.window = window
        self.is_ring = window.pattern == "chunk"
        self._real = call.real
        self._order = call.order or identity_order(length, device)
        self._wide = wide_dtype(call.query)
        rounds = self._order.num_hashes
        self._alike = True
        if self.is_ring:
            # The chunks of a ring are part of its definition.
            chunk = window.chunk_length
            self._round_chunks = -(-length // chunk)
            self._num_chunks = self._round_chunks * rounds
            self.tile = min(chunk, length)
            # What goes round the ring sees its chunks several times; here they stand once.
            seen = min(window.before + 1 + window.after, self._num_chunks)
            self._chunks_before = min(window.before, seen - 1)
            self._chunks_after = seen - 1 - self._chunks_before
            self.num_keys = seen * self.tile
            filled_up = self._round_chunks * self.tile
            self._alike = self.tile * self.num_keys <= _FILLED_UP_SCORES or filled_up == length
            self._round_slots = filled_up if self._alike else length
            self.slots = self._round_slots * rounds
            self.before = -self._chunk_start(-self._chunks_before)
            self.after = self._chunk_start(self._num_chunks + self._chunks_after) - self.slots
            self.num_passes = 1
        else:
            # No two tokens of a bucket are further apart than the sequence is long.
            self.before, self.after = min(window.before, length - 1), min(window.after, length - 1)
            self.tile = min(_tile_for_reach(self.before + self.after), length)
            self._round_slots = self.slots = length
            self.num_keys = self.before + self.tile + self.after
            self.num_passes = rounds
        self.stride = self.before + self.slots + self.after
        if self._alike:
            self.stride = -(-self.stride // self.tile) * self.tile
        first_index = torch.arange(self.batch, device=device).view(-1, 1) * (length * self.heads)
        self._first_index = first_index + torch.arange(self.heads, device=device)

    def groups(self, slices: int) -> Iterator[Group]:
        """All slices, at most ``slices`` at a time, in groups of about the same size."""
        for rows in _split(self.batch, max(1, slices // self.heads)):
            for heads in _split(self.heads, slices):
                yield Group(rows, heads)

    def _chunk_start(self, chunk: int) -> int:
        """Where a chunk of the ring begins; chunks before 0 and behind the last repeat others."""
        rounds, within = divmod(chunk, self._round_chunks)
        return rounds * self._round_slots + within * self.tile

    def _times(self, chunk: int) -> Tensor | None:
        """How often a chunk sees the key slots around it, ``[K]``, if it goes round the ring."""
        before, after = self.window.before, self.window.after
        if before + after < self._num_chunks:
            return None
        times = []
        for shift in range(-self._chunks_before, self._chunks_after + 1):
            size = self._chunk_start(chunk + shift + 1) - self._chunk_start(chunk + shift)
            laps = [s for s in range(-before, after + 1) if (s - shift) % self._num_chunks == 0]
            times += [len(laps)] * size
        return torch.tensor(times, dtype=self._wide, device=self._first_index.device)

    def blocks(self, slices: int, scores: int) -> Iterator[Block]:
        """All tiles of a line.

        Args:
            slices: that stand in the line.
            scores: of a block, about and at most; but a tile of a window is not divided, nor are
                fewer than ``_MAX_TILE`` queries of a chunk.
        """
        tile, num_keys = self.tile, self.num_keys
        if self._alike and not (self.is_ring and tile * num_keys > scores):
            count, step = slices * self.stride // tile, max(1, scores // (tile * num_keys))
            times = self._times(0) if self.is_ring else None
            for first in range(0, count, step):
                last = min(first + step, count)
                yield Block(
                    slice(first * tile + self.before, last * tile + self.before),
                    slice(first * tile, (last - 1) * tile + num_keys),
                    last - first,
                    times,
                )
            return
        step = max(_MAX_TILE, scores // num_keys)
        for begin in range(self.before, slices * self.stride, self.stride):
            for chunk in range(self._num_chunks):
                keys = slice(
                    begin + self._chunk_start(chunk - self._chunks_before),
                    begin + self._chunk_start(chunk + self._chunks_after + 1),
                )
                end, times = begin + self._chunk_start(chunk + 1), self._times(chunk)
                for first in range(begin + self._chunk_start(chunk), end, step):
                    yield Block(slice(first, min(first + step, end)), keys, 1, times)

    def build(self, index: int, group: Group) -> Line:
        """Pass ``index`` of a group."""
        return (self._ring_line if self.is_ring else self._window_line)(index, group)

    def _line(self, x: Tensor, value: float) -> Tensor:
        """``[.., G, n]`` numbers by slot as a line ``[.., S]``, filled up with ``value``."""
        x = pad(x, (0, self.stride - x.shape[-1]), value=value)
        return pad(x.flatten(-2), (0, self.num_keys), value=value)

    def _finish(
        self, group: Group, token: Tensor, tag: Tensor, hash_round: Tensor, slots: Tensor
    ) -> Line:
        """A line from ``[G, n]`` tokens and tags by slot and ``[copies, G, N]`` slots."""
        first_slot = torch.arange(group.size, device=token.device).view(-1, 1) * self.stride
        index = group.select(self._first_index).reshape(-1, 1) + token * self.heads
        tail = (0, self.stride - token.shape[-1])
        return Line(
            index=self._line(index, 0),
            tag=self._line(tag, _NOBODY),
            token=pad(token, tail),
            hash_round=pad(hash_round, tail),
            votes=self._votes(group, token),
            slot_of_token=slots + first_slot,
        )

    def _window_line(self, index: int, group: Group) -> Line:
        token = group.select_order(self._order.order[:, :, index])
        tag = group.select_order(self._order.bucket[:, :, index]).gather(1, token).to(self._wide)
        front = (self.before, 0)
        slots = group.select_order(self._order.rank[:, :, index]) + self.before
        hash_round = torch.full(
            (self.before + self.slots,), index, dtype=torch.int32, device=token.device
        )
        token, tag = pad(token, front), pad(tag, front, value=_NOBODY)
        return self._finish(group, token, tag, hash_round, slots.unsqueeze(0))

    def _ring_line(self, index: int, group: Group) -> Line:
        """The tags are positions; those of padding and of empty slots are below all positions."""
        del index
        per_round = group.select_order(self._order.order)
        rounds = per_round.shape[1]
        tail = (0, self._round_slots - self.length)
        token = pad(per_round, tail).flatten(1)
        tag = pad(per_round, tail, value=_NOBODY).flatten(1)
        if self._real is not None:
            real = group.select_order(self._real.unsqueeze(1)).unsqueeze(1).expand(-1, rounds, -1)
            real = real.gather(-1, per_round)
            # Distinct from one another, so that a padding token still recognises itself.
            tag = torch.where(pad(real, tail).flatten(1), tag, _NOBODY - 1 - tag)
        ring = torch.arange(-self.before, self.slots + self.after, device=token.device)
        ring = ring.remainder(self.slots)
        first = torch.arange(rounds, device=token.device).view(1, -1, 1) * self._round_slots
        slots = group.select_order(self._order.rank) + first + self.before
        return self._finish(
            group,
            token[:, ring],
            tag.to(torch.int32)[:, ring],
            (ring // self._round_slots).to(torch.int32),
            slots.transpose(0, 1),
        )

    # ---- who sees whom ----

    @cached_property
    def _place(self) -> Tensor:
        """``[B', H', R, N]``: from which it is seen whether two tokens meet in a round."""
        if self.is_ring:
            first_chunk = torch.arange(self._order.num_hashes, device=self._order.rank.device)
            first_chunk = (first_chunk * self._round_chunks).unsqueeze(-1)
            return self._order.rank // self.tile + first_chunk
        # Doubled, so that the middle of every window is a whole number.
        return 2 * spaced_rank(self._order, max(self.before, self.after) + 1)

    def _votes(self, group: Group, token: Tensor) -> Tensor | None:
        """Where the tokens ``[G, n]`` stand in every round, ``[R, S]``, if that matters."""
        if self.window.count_duplicates or (self._order.num_hashes == 1 and not self.is_ring):
            return None
        place = group.select_order(self._place)
        place = place.gather(-1, token.unsqueeze(1).expand(-1, place.shape[1], -1))
        return self._line(place.transpose(0, 1).to(torch.int32), 0)

    def by_slot(self, x: Tensor, line: Line, fill: float) -> Tensor:
        """``[G, N]`` numbers by token as a line ``[S]``, with ``fill`` in slots of nobody."""
        group = x.shape[0]
        out = x.new_full((group * self.stride + self.num_keys,), fill)
        for slots in line.slot_of_token:
            out[slots] = x
        return out

    def query_tiles(self, x: Tensor, block: Block) -> Tensor:
        """``[S]`` numbers by slot as ``[T', C, 1]`` for the tiles of a block."""
        return x[block.queries].view(block.count, block.tile, 1)

    def key_tiles(self, x: Tensor, block: Block) -> Tensor:
        """``[S]`` numbers by slot as an overlapping view ``[T', 1, K]``."""
        return x[block.keys].unfold(-1, block.num_keys, block.tile).unsqueeze(1)

    @cached_property
    def band(self) -> Tensor | None:
        """``[C, K]``: 0 where a key slot is within the window of a query slot, else ``-inf``.

        ``None`` for a ring, where a tile sees all its keys.
        """
        if self.is_ring:
            return None
        query = torch.arange(self.tile, device=self._order.rank.device).unsqueeze(-1)
        key = torch.arange(self.num_keys, device=query.device)
        outside = (key < query) | (key > query + self.before + self.after)
        return torch.zeros(outside.shape, dtype=self._wide, device=query.device).masked_fill_(
            outside, -torch.inf
        )

    def mask_scores_(self, scores: Tensor, gap: Tensor, line: Line, block: Block) -> Tensor:
        """Take from the scores of pairs that do not see each other more than they can have.

        In place; everything is arithmetic, because comparisons and selections are many times
        slower on a CPU.

        Args:
            scores: ``[T', C, K]`` for the tiles of the block, already outside the band.
            gap: scratch memory of that shape.
            line: the pass.
            block: the tiles.
        """
        query_tag = self.query_tiles(line.tag, block)
        key_tag = self.key_tiles(line.tag, block)
        if self.is_ring:
            self._mask_ring_(scores, query_tag, key_tag)
        else:
            # Up to its own slot a query finds its bucket or lower ones, behind it also higher ones.
            torch.sub(key_tag, query_tag, out=gap)
            if self.after:
                gap.abs_().neg_()
            scores.add_(gap, alpha=_FAR)
            if self.window.exclude_self:
                scores.diagonal(self.before, dim1=-2, dim2=-1).fill_(SELF_SCORE)
        votes = self._count_votes(line, block)
        if votes is not None:
            scores -= votes.to(scores.dtype).log_()
        return scores

    def _mask_ring_(self, scores: Tensor, query_tag: Tensor, key_tag: Tensor) -> None:
        """Padding sees nothing but itself and is seen by nothing else."""
        hidden = (key_tag < 0) | (query_tag < 0)
        if self.window.causal:
            hidden = hidden | (key_tag > query_tag)
        scores.masked_fill_(hidden, -torch.inf)
        if self.window.exclude_self:
            scores.masked_fill_((key_tag == query_tag) & (query_tag != _NOBODY), SELF_SCORE)

    def _count_votes(self, line: Line, block: Block) -> Tensor | None:
        """``[T', C, K]``: in how many slots, over all rounds, the query meets the key."""
        if line.votes is None:
            return None
        window = self.window
        votes: Tensor | None = None
        for own in line.votes:
            query = self.query_tiles(own, block)
            if self.is_ring:
                for other in line.votes:
                    step = query - self.key_tiles(other, block)
                    for shift in range(-window.after, window.before + 1):
                        met = ((step - shift).remainder_(self._num_chunks) == 0).to(torch.int32)
                        votes = met if votes is None else votes.add_(met)
            else:
                reach = self.before + self.after
                distance = (query - (self.before - self.after)) - self.key_tiles(own, block)
                # 1 where |distance| <= reach, else 0.
                met = distance.abs_().neg_().add_(reach + 1).clamp_(0, 1)
                votes = met if votes is None else votes.add_(met)
        return None if votes is None else votes.clamp_(min=1)

    def fold_keys(self, x: Tensor) -> Tensor:
        """A line ``[S, D]`` in which every slot also holds what its repetitions in a ring held."""
        if not self.is_ring or not (self.before or self.after):
            return x
        lines = x[: x.shape[0] - self.num_keys].view(-1, self.stride, x.shape[-1])
        ring = torch.arange(-self.before, self.slots + self.after, device=x.device)
        place = ring.remainder(self.slots) + self.before
        outside = torch.cat((ring[: self.before], ring[self.before + self.slots :])) + self.before
        lines.index_add_(1, place[outside], lines[:, outside])
        return x


def _tile_for_reach(reach: int) -> int:
    """A tile of about half the window: a smaller one multiplies slower, a larger one in vain."""
    return min(_MAX_TILE, max(_MIN_TILE, 1 << max(0, (reach // 2 - 1).bit_length())))


def _split(count: int, largest: int) -> Iterator[slice]:
    """``range(count)`` in as few parts of about the same size as have at most ``largest``."""
    parts = -(-count // largest)
    for i in range(parts):
        yield slice(i * count // parts, (i + 1) * count // parts)
