"""Sorted slots: which token stands in which slot, and which slots see each other.

The vectorised backend works on *passes*. In the ``window`` pattern a pass is one hash round; in
the ``chunk`` pattern it is the ring of all rounds' chunks. Either way a pass is a line of ``L``
query slots, cut into tiles of ``C``, in a line of ``P = before + L + after`` key slots, and tile
``t`` may see the key slots ``t C .. t C + K`` with ``K = before + C + after``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from reformer_hf.ops.sorting import identity_order, spaced_rank
from reformer_hf.ops.windowed_attention.call import SELF_SCORE, WindowedAttentionCall

# Tag of a slot that holds no token: its distance to every other tag is outside all windows.
_NOWHERE = 1 << 29


@dataclass(frozen=True)
class Pass:
    """One pass over a group of ``G`` slices (a slice is one row and head).

    The leading size is 1 instead of ``G`` where the whole group shares the order.

    Attributes:
        key_token: ``[G, P]`` int64, the token in each key slot (0 where there is none).
        query_token: ``[G, L]`` int64, likewise for the query slots.
        query_tag, key_tag: ``[G, 1, L]`` and ``[G, 1, P]`` int32, from which visibility is decided.
        query_votes, key_votes: ``[G, R, L]`` and ``[G, R, P]`` int32, where the token stands in
            every round; ``None`` where duplicates count.
        query_round: ``[L]`` int32, the hash round of each query slot.
        slot_of_token: ``[G, copies, N]`` int64, the query slots in which a token stands.
    """

    key_token: Tensor
    query_token: Tensor
    query_tag: Tensor
    key_tag: Tensor
    query_votes: Tensor | None
    key_votes: Tensor | None
    query_round: Tensor
    slot_of_token: Tensor


class SlotLayout:
    """The passes of one call, and the rules of visibility within them.

    Attributes:
        length, slots: tokens ``N`` and query slots ``L`` of a pass.
        tile, num_tiles: ``C`` and ``T = L / C``.
        before, after: key slots before and after a tile.
        num_passes: passes over the slots.
    """

    def __init__(self, call: WindowedAttentionCall) -> None:
        window = call.window
        batch, heads, length, _ = call.query.shape
        device = call.query.device
        self.window = window
        self.is_ring = window.pattern == "chunk"
        self.length = length
        # The chunks of a ring are part of its definition; tiles of a window can be cut short.
        self.tile = window.chunk_length if self.is_ring else min(window.chunk_length, length)
        self._order = call.order or identity_order(length, device)
        rounds = self._order.num_hashes
        self._round_slots = -(-length // self.tile) * self.tile
        self.slots = self._round_slots * (rounds if self.is_ring else 1)
        self.num_tiles = self.slots // self.tile
        # No two tokens of a bucket are further apart than the sequence is long.
        self.before = window.before * self.tile if self.is_ring else min(window.before, length - 1)
        self.after = window.after * self.tile if self.is_ring else min(window.after, length - 1)
        self.num_passes = 1 if self.is_ring else rounds

        def per_slice(x: Tensor) -> Tensor:
            if x.shape[0] == 1 and x.shape[1] == 1:
                return x.flatten(0, 1)
            return x.expand(batch, heads, -1, -1).reshape(batch * heads, *x.shape[2:])

        self._token = per_slice(self._order.order)
        self._rank = per_slice(self._order.rank)
        self._real: Tensor | None = None
        if self.is_ring:
            if call.real is not None:
                self._real = call.real.unsqueeze(1).expand(-1, heads, -1).reshape(-1, length)
            first_chunk = torch.arange(rounds, device=device) * (self._round_slots // self.tile)
            self._place = self._rank // self.tile + first_chunk.unsqueeze(-1)
        else:
            # Doubled, so that the middle of every window is a whole number.
            self._place = 2 * per_slice(spaced_rank(self._order, max(self.before, self.after) + 1))

    @property
    def shared(self) -> bool:
        """All slices share the order and the visibility."""
        return self._token.shape[0] == 1 and self._real is None

    @property
    def num_keys(self) -> int:
        """Key slots that a tile may see, ``K``."""
        return self.before + self.tile + self.after

    def build(self, index: int, start: int, stop: int) -> Pass:
        """Pass ``index`` of the slices ``start:stop``."""
        return (self._ring_pass if self.is_ring else self._window_pass)(index, start, stop)

    def _select(self, x: Tensor, start: int, stop: int) -> Tensor:
        return x if x.shape[0] == 1 else x[start:stop]

    def _votes(self, token: Tensor, start: int, stop: int) -> Tensor | None:
        """Where the tokens stand in every round, ``[G, R, slots]``, if that matters."""
        if self.window.count_duplicates or (self._place.shape[1] == 1 and not self.is_ring):
            return None
        place = self._select(self._place, start, stop)
        index = token.unsqueeze(1).expand(-1, place.shape[1], -1)
        return place.gather(-1, index).to(torch.int32)

    def _window_pass(self, index: int, start: int, stop: int) -> Pass:
        token = self._select(self._token, start, stop)[:, index]
        tag = self._select(self._place, start, stop)[:, index].gather(-1, token)
        tag = tag.unsqueeze(1).to(torch.int32)
        votes = self._votes(token, start, stop)
        tail = self.slots - self.length
        before, after = self.before, self.after + tail
        return Pass(
            key_token=pad(token, (before, after)),
            query_token=pad(token, (0, tail)),
            query_tag=pad(tag, (0, tail), value=-_NOWHERE),
            key_tag=pad(tag, (before, after), value=_NOWHERE),
            query_votes=None if votes is None else pad(votes, (0, tail)),
            key_votes=None if votes is None else pad(votes, (before, after)),
            query_round=tag.new_full((self.slots,), index),
            slot_of_token=self._select(self._rank, start, stop)[:, index : index + 1],
        )

    def _ring_pass(self, index: int, start: int, stop: int) -> Pass:
        """The tags are positions; those of padding and of empty slots are below all positions."""
        del index
        per_round = self._select(self._token, start, stop)
        rounds = per_round.shape[1]
        tail = self._round_slots - self.length
        token = pad(per_round, (0, tail)).flatten(1)
        tag = pad(per_round, (0, tail), value=-1).flatten(1)
        if self._real is not None:
            real = self._real[start:stop].unsqueeze(1).expand(-1, rounds, -1)
            real = real.gather(-1, per_round.expand(real.shape[0], -1, -1))
            # Distinct from one another, so that a padding token still recognises itself.
            tag = torch.where(pad(real, (0, tail)).flatten(1), tag, -2 - tag)
        ring = torch.arange(-self.before, self.slots + self.after, device=token.device)
        ring = ring.remainder(self.slots)
        first = torch.arange(rounds, device=token.device).view(1, -1, 1) * self._round_slots
        key_token = token[:, ring]
        tag = tag.unsqueeze(1).to(torch.int32)
        return Pass(
            key_token=key_token,
            query_token=token,
            query_tag=tag,
            key_tag=tag[:, :, ring],
            query_votes=self._votes(token, start, stop),
            key_votes=self._votes(key_token, start, stop),
            query_round=(ring[self.before : self.before + self.slots] // self._round_slots).to(
                torch.int32
            ),
            slot_of_token=self._select(self._rank, start, stop) + first,
        )

    def query_tiles(self, x: Tensor, first: int, last: int) -> Tensor:
        """``[.., L]`` numbers per query slot as ``[.., T', C, 1]`` for the tiles ``first:last``."""
        part = x[..., first * self.tile : last * self.tile]
        return part.unflatten(-1, (last - first, self.tile)).unsqueeze(-1)

    def key_tiles(self, x: Tensor, first: int, last: int) -> Tensor:
        """``[.., P]`` numbers per key slot as an overlapping view ``[.., T', 1, K]``."""
        part = x[..., first * self.tile : (last - 1) * self.tile + self.num_keys]
        return part.unfold(-1, self.num_keys, self.tile).unsqueeze(-2)

    def mask_scores_(self, scores: Tensor, part: Pass, first: int, last: int) -> Tensor:
        """Put ``-inf`` where a query does not see a key, in place.

        Args:
            scores: ``[G, T', C, K]`` for the tiles ``first:last``.
            part: the pass.
            first: first tile.
            last: one past the last tile.
        """
        query_tag = self.query_tiles(part.query_tag[:, 0], first, last)
        key_tag = self.key_tiles(part.key_tag[:, 0], first, last)
        if self.is_ring:
            self._mask_ring_(scores, query_tag, key_tag)
        else:
            distance = (query_tag - (self.before - self.after)) - key_tag
            scores.masked_fill_(distance.abs_() > self.before + self.after, -torch.inf)
            if self.window.exclude_self:
                scores.diagonal(self.before, dim1=-2, dim2=-1).fill_(SELF_SCORE)
        votes = self._count_votes(part, first, last)
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
            scores.masked_fill_((key_tag == query_tag) & (query_tag != -1), SELF_SCORE)

    def _count_votes(self, part: Pass, first: int, last: int) -> Tensor | None:
        """``[G, T', C, K]``: in how many slots, over all rounds, the query meets the key."""
        if part.query_votes is None or part.key_votes is None:
            return None
        window, rounds = self.window, part.query_votes.shape[1]
        votes: Tensor | None = None
        for r in range(rounds):
            query = self.query_tiles(part.query_votes[:, r], first, last)
            if self.is_ring:
                for other in range(rounds):
                    step = query - self.key_tiles(part.key_votes[:, other], first, last)
                    for shift in range(-window.after, window.before + 1):
                        met = ((step - shift).remainder_(self.num_tiles) == 0).to(torch.int32)
                        votes = met if votes is None else votes.add_(met)
            else:
                distance = (query - (self.before - self.after)) - self.key_tiles(
                    part.key_votes[:, r], first, last
                )
                met = (distance.abs_() <= self.before + self.after).to(torch.int32)
                votes = met if votes is None else votes.add_(met)
        return None if votes is None else votes.clamp_(min=1)

    def fold_keys(self, x: Tensor) -> Tensor:
        """Sum gradients of key slots ``[G, P', D]`` (``P' >= P``) into query slots ``[G, L, D]``.

        Slots before the first and after the last tile wrap around in a ring and are nobody's
        otherwise.
        """
        folded = x[:, self.before : self.before + self.slots]
        if self.is_ring and (self.before or self.after):
            folded = folded.clone()
            outside = torch.arange(-self.before, self.slots + self.after, device=x.device)
            outside = torch.cat(
                (outside[: self.before], outside[self.before + self.slots :])
            ).remainder_(self.slots)
            rows = torch.cat(
                (
                    x[:, : self.before],
                    x[:, self.before + self.slots : self.before + self.slots + self.after],
                ),
                dim=1,
            )
            folded.index_add_(1, outside, rows)
        return folded
