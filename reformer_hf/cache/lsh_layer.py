"""Cache layer of LSH attention: tokens, their buckets, and a ring per bucket."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_layer import ROOM_FOR_NEW_TOKENS, TokenCacheLayer, rearrange
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.bucket_rings import (
    BucketRings,
    RingChange,
    append_newest,
    append_to_rings,
    empty_rings,
    rings_from_order,
    take_back,
)
from reformer_hf.ops.decoding import attend_block, attend_newest, same_bucket_before
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.row_hashing import RowHasher, factors_of_rows
from reformer_hf.ops.shared_keys import normalize_keys
from reformer_hf.ops.sorting import BucketOrder, identity_order, sort_by_bucket
from reformer_hf.ops.stored_tokens import NewTokens, StoredTokens
from reformer_hf.ops.windowed_attention import windowed_attention

# Numbers of keys that are gathered for a block of new tokens at a time (16 MiB of fp32).
_BLOCK_ELEMENTS = 1 << 22
# Reading the rings of a token costs about as much as that many tokens cost in a pass over all.
_GATHER_COST = 8


@dataclass(frozen=True)
class Hashing:
    """What the first call of a cache layer fixes.

    Attributes:
        hasher: the hash functions.
        window: who sees whom.
        num_buckets: of the row that has the most.
        rounds: hash rounds that differ, ``R``.
    """

    hasher: RowHasher
    window: AttentionWindow
    num_buckets: int
    rounds: int


class HashedCacheLayer(TokenCacheLayer):
    """Normalised keys, values and buckets of an LSH layer, of either attention pattern.

    Attributes:
        buckets: ``[B, H, capacity, R]`` int16 or int32; without rows before the first tokens.
        hashing: how tokens are hashed; ``None`` before :meth:`open`.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.hashing: Hashing | None = None
        self.buckets = torch.empty((0, 0, 0, 0), dtype=torch.int16)

    def open(self, settings: HashSettings, window: AttentionWindow) -> None:
        """Fix the hash functions, after :meth:`Timeline.open` and before the first tokens."""
        per_row = factors_of_rows(settings, window, self.timeline.coming_lengths)
        hasher = RowHasher(settings, per_row, num_positions=self.planned_capacity)
        # In the window pattern, with one bucket all rounds are alike, and nothing is hashed.
        alike = hasher.num_buckets == 1 and window.pattern == "window"
        rounds = 1 if alike else settings.num_hashes
        self.hashing = Hashing(hasher, window, hasher.num_buckets, rounds)

    def _opened(self) -> Hashing:
        if self.hashing is None:
            raise ValueError(
                f"a {type(self).__name__} needs a call of `open` before its tokens come"
            )
        return self.hashing

    @property
    def hasher(self) -> RowHasher:
        """The hash functions, which stay the same until :meth:`reset`."""
        return self._opened().hasher

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        hashing = self._opened()
        small = hashing.num_buckets <= torch.iinfo(torch.int16).max
        shape = (*key_states.shape[:2], 0, hashing.rounds)
        dtype = torch.int16 if small else torch.int32
        self.buckets = torch.zeros(shape, dtype=dtype, device=self.device)

    def _hash(self, query_key: Tensor) -> Tensor:
        """Buckets ``[B, H, R, n]`` int64 of the coming tokens ``[B, H, n, D]``."""
        hashing, positions = self._opened(), None
        if hashing.num_buckets == 1:
            batch, heads, length, _ = query_key.shape
            shape = (batch, heads, hashing.rounds, length)
            return query_key.new_zeros(shape, dtype=torch.int64)
        if hashing.hasher.settings.family == "random":
            positions = self.timeline.coming_positions()
            hashing.hasher.reach(int(positions.max()) + 1)
        return hashing.hasher(query_key, positions)

    def _buffers(self) -> dict[str, Tensor]:
        return {**super()._buffers(), "buckets": self.buckets}

    def reset(self) -> None:
        super().reset()
        self.hashing, self.buckets = None, self.buckets.new_empty((0, 0, 0, 0))

    def take_rows(self, rows: Tensor) -> None:
        super().take_rows(rows)
        if self.is_initialized:
            self.hasher.take_rows([self.hasher.per_row[i] for i in rows.tolist()])


class LSHCacheLayer(HashedCacheLayer):
    """Tokens, and per bucket a ring of the last ``W`` positions: all that a later token can see.

    Attributes:
        rings: of all buckets; they can be made again from the buckets of the tokens.
    """

    _layer_type = "reformer_lsh"

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self.rings = empty_rings((0, 0, 0, 0, 0), self.buckets.device)
        self._changes: deque[RingChange] = deque()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        hashing, (batch, heads) = self._opened(), key_states.shape[:2]
        shape = (batch, heads, hashing.rounds, hashing.num_buckets, hashing.window.before)
        self._set_rings(empty_rings(shape, self.device))

    def _stored(self) -> StoredTokens:
        time = self.timeline
        base = time.shared(("base", *self.keys.shape[:3]), self._base)
        first = time.per_row(time.firsts)
        return StoredTokens(
            self.keys, self.values, self.buckets, self.rings, first, self.modulus, base
        )

    def _base(self) -> Tensor:
        batch, heads, capacity, _ = self.keys.shape
        base = torch.arange(batch * heads, device=self.device) * capacity
        return base.view(batch, heads, 1, 1)

    def nbytes(self) -> int:
        return super().nbytes() + self.rings.entries.nbytes + self.rings.counts.nbytes

    # ---- new tokens ----

    def store(self, query_key: Tensor, value: Tensor) -> None:
        """Store the first tokens ``[B, H, n, D]``."""
        self._store_first(self._new_tokens(query_key, value))

    def attend(
        self, query_key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """LSH attention of new tokens ``[B, H, n, D]`` to stored ones and to each other.

        The new tokens are stored. They may be the first ones: one sort then serves both.
        """
        time, new = self.timeline, self._new_tokens(query_key, value)
        length = query_key.shape[2]
        if time.padding is None and length == 1:
            return self._attend_newest(new, window)
        if time.empty:
            order = self._store_first(new)
            real = None if time.padding is None else time.padding.real
            out, _ = windowed_attention(
                query_key, None, value, order, window=window, real=real, backend=backend
            )
            return out
        room = self.modulus is None or length <= ROOM_FOR_NEW_TOKENS
        if time.padding is None and room and max(time.ends) > _GATHER_COST * length:
            return self._attend_blocks(new, window)
        return self._attend_all(new, window, backend)

    def _new_tokens(self, query_key: Tensor, value: Tensor) -> NewTokens:
        return NewTokens(query_key, normalize_keys(query_key), value, self._hash(query_key))

    def _store_new(self, new: NewTokens) -> None:
        self._store(keys=new.key, values=new.value, buckets=new.buckets.transpose(2, 3))

    def _store_first(self, new: NewTokens) -> BucketOrder | None:
        """Store the first tokens; their sorted order."""
        padding = self.timeline.padding
        order = self._order(new.buckets, None if padding is None else padding.real)
        self._store_new(new)
        self._make_rings(order, self.timeline.coming_positions())
        return order

    def _attend_newest(self, new: NewTokens, window: AttentionWindow) -> Tensor:
        self._store_new(new)
        time, ring = self.timeline, self.rings.ring_of(new.buckets)
        position = time.per_row(time.ends)
        out = attend_newest(new, ring, self._stored(), position=position, window=window)
        if time.recording:
            self._append(ring, torch.zeros_like(ring), time.coming_positions())
        else:
            append_newest(self.rings, ring, position)
            self._changes.clear()
        return out

    def _attend_blocks(self, new: NewTokens, window: AttentionWindow) -> Tensor:
        """Blocks of new tokens one after the other, each gathering what it sees."""
        self._store_new(new)
        stored, positions = self._stored(), self.timeline.coming_positions()
        batch, heads, length, size = new.key.shape
        each = batch * heads * new.buckets.shape[2] * self.rings.window * size
        block = max(1, min(self.rings.window, _BLOCK_ELEMENTS // each))
        parts = []
        for start in range(0, length, block):
            part = new.part(start, block)
            ring, same = self.rings.ring_of(part.buckets), same_bucket_before(part.buckets)
            parts.append(attend_block(part, ring, stored, same=same, window=window))
            self._append(ring, same.sum(-1), positions[:, start : start + block])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _attend_all(self, new: NewTokens, window: AttentionWindow, backend: str) -> Tensor:
        """One pass over all tokens; outputs of cached queries are discarded."""
        old, held, (keys, values, buckets) = self.read_last(None, "keys", "values", "buckets")
        real = self.with_coming(held)
        buckets = torch.cat((buckets.transpose(2, 3).to(torch.int64), new.buckets), dim=-1)
        order = self._order(buckets, None if bool(real.all()) else real)
        out, _ = windowed_attention(
            torch.cat((keys, new.query), dim=2),
            torch.cat((keys, new.key), dim=2),
            torch.cat((values, new.value), dim=2),
            order,
            window=window,
            real=real,
            backend=backend,
        )
        self._store_new(new)
        self._make_rings(order, torch.cat((old, self.timeline.coming_positions()), dim=1))
        return out[:, :, held.shape[1] :]

    # ---- rings ----

    def _order(self, buckets: Tensor, real: Tensor | None) -> BucketOrder | None:
        """The sorted order of buckets ``[B, H, R, n]``; ``None``: that of the sequence."""
        num_buckets = self._opened().num_buckets
        if real is not None:
            buckets = torch.where(real[:, None, None, :], buckets, num_buckets)
            return sort_by_bucket(buckets, num_buckets + 1)
        return None if num_buckets == 1 else sort_by_bucket(buckets, num_buckets)

    @torch.no_grad()
    def _make_rings(self, order: BucketOrder | None, positions: Tensor) -> None:
        """Rings of all tokens, from their sorted order and positions ``[B, n]``."""
        if order is None:
            order = identity_order(positions.shape[1], positions.device)
        self._set_rings(rings_from_order(order, positions, self.rings.entries.shape))

    def _set_rings(self, rings: BucketRings) -> None:
        self.rings = rings
        self._changes.clear()

    def _append(self, ring: Tensor, earlier: Tensor, positions: Tensor) -> None:
        keep = self.timeline.recording
        change = append_to_rings(self.rings, ring, earlier, positions, keep_replaced=keep)
        if change is not None:
            self._changes.append(change)
        else:
            self._changes.clear()

    # ---- forgetting, rows ----

    def crop_tokens(self, lost: tuple[int, ...]) -> None:
        """Take tokens out of the rings: change by change if they were recorded, else anew."""
        count = lost[0]
        if len(set(lost)) == 1 and count <= sum(change.length for change in self._changes):
            while count:
                change = self._changes.pop()
                undone = min(count, change.length)
                kept, undo = change.split(change.length - undone)
                take_back(self.rings, undo)
                if kept.length:
                    self._changes.append(kept)
                count -= undone
            self._changes.clear()
            return
        positions, held, (buckets,) = self.read_last(None, "buckets")
        if held.shape[1] == 0:
            self._set_rings(empty_rings(self.rings.entries.shape, self.device))
            return
        self._make_rings(self._order(buckets.transpose(2, 3).to(torch.int64), held), positions)

    def reset(self) -> None:
        super().reset()
        self._set_rings(empty_rings((0, 0, 0, 0, 0), self.buckets.device))

    def take_rows(self, rows: Tensor) -> None:
        super().take_rows(rows)
        if self.is_initialized:
            chosen = rows.tolist()
            entries, counts = self.rings.entries, self.rings.counts
            # Slots are numbered through all rows, so recorded changes do not fit any more.
            self._set_rings(BucketRings(rearrange(entries, chosen), rearrange(counts, chosen)))
