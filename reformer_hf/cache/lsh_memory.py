"""Memory of a layer with LSH attention: tokens, their buckets, and a ring per bucket."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reformer_hf.cache.full_memory import SPARE
from reformer_hf.cache.hashed_memory import HashedMemory
from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_memory import rearrange
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
from reformer_hf.ops.row_hashing import Factors, RowHasher
from reformer_hf.ops.shared_keys import normalize_keys
from reformer_hf.ops.sorting import BucketOrder, identity_order, sort_by_bucket
from reformer_hf.ops.windowed_attention import windowed_attention

# Numbers of keys that are gathered for a block of new tokens at a time (16 MiB of fp32).
_BLOCK_ELEMENTS = 1 << 22
# Reading the rings of a token costs about as much as that many tokens cost in a pass over all.
_GATHER_COST = 8


class LSHMemory(HashedMemory):
    """Normalised keys and values of all tokens, the buckets of each, and the rings.

    The buckets are int16 or int32; rings can be made again from them.

    Attributes:
        rings: the last ``W`` tokens of every bucket.
    """

    _layer_type = "reformer_lsh"

    def __init__(self, timeline: Timeline) -> None:
        kept = timeline.max_tokens
        super().__init__(timeline, None if kept is None else kept + SPARE)
        self._changes: deque[RingChange] = deque()

    def start(
        self,
        query_key: Tensor,
        value: Tensor,
        window: AttentionWindow,
        settings: HashSettings,
        per_row: Sequence[Factors],
    ) -> None:
        """Fix the hash functions and make room, when the first tokens ``[B, H, n, D]`` come."""
        hasher = RowHasher(settings, per_row, num_positions=query_key.shape[2])
        self.window, self.num_buckets = window.before, hasher.num_buckets
        # With one bucket all rounds are alike, and nothing is hashed.
        rounds = 1 if self.num_buckets == 1 else settings.num_hashes
        small = self.num_buckets <= torch.iinfo(torch.int16).max
        dtype = torch.int16 if small else torch.int32
        self.start_hashing(query_key, value, window, hasher, rounds=rounds, dtype=dtype)
        self._clear_rings()

    def _clear_rings(self) -> None:
        batch, heads, _, rounds = self.buckets.shape
        self.rings = empty_rings(
            batch, heads, rounds, self.num_buckets, self.window, self.buckets.device
        )
        self._changes.clear()

    @property
    def rounds(self) -> int:
        """Rounds that differ."""
        return self.rings.entries.shape[2]

    def nbytes(self) -> int:
        """Bytes of all buffers and rings."""
        if not self.is_initialized:
            return 0
        return super().nbytes() + self.rings.entries.nbytes + self.rings.counts.nbytes

    # ---- new tokens ----

    def _hash(self, query_key: Tensor) -> Tensor:
        """Buckets ``[B, H, R, n]`` int64 of the coming tokens."""
        if self.num_buckets == 1:
            batch, heads, length, _ = query_key.shape
            return query_key.new_zeros((batch, heads, 1, length), dtype=torch.int64)
        return self.hash_coming(query_key)

    def remember(self, query_key: Tensor, value: Tensor) -> tuple[BucketOrder | None, Tensor]:
        """Store the first tokens.

        Args:
            query_key: ``[B, H, n, D]``.
            value: ``[B, H, n, D]``.

        Returns:
            Their sorted order, and their normalised keys.
        """
        key, buckets = normalize_keys(query_key), self._hash(query_key)
        padding = self.timeline.padding
        order = self._order(buckets, None if padding is None else padding.real)
        self._store_all(key, value, buckets, order, self.timeline.coming_positions())
        return order, key

    def attend(
        self, query_key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """LSH attention of new tokens ``[B, H, n, D]`` to those in memory and to each other."""
        time, length = self.timeline, query_key.shape[2]
        if time.empty and length > 1:
            order, _ = self.remember(query_key, value)
            real = None if time.padding is None else time.padding.real
            out, _ = windowed_attention(
                query_key, None, value, order, window=window, real=real, backend=backend
            )
            return out
        key = normalize_keys(query_key)
        buckets = self._hash(query_key)
        if time.padding is None and length == 1:
            return self._attend_newest(query_key, key, value, buckets, window)
        spare = self.modulus is None or length <= SPARE
        if time.padding is None and spare and max(time.ends) > _GATHER_COST * length:
            return self._attend_blocks(query_key, key, value, buckets, window)
        return self._attend_all(query_key, key, value, buckets, window, backend)

    def _base(self) -> Tensor:
        """``[B, H, 1]`` int64, where the memory of each row and head begins."""
        batch, heads, capacity, _ = self.keys.shape
        name = ("base", batch, heads, capacity)
        base = self.timeline.shared(name)
        if base is None:
            base = torch.arange(batch * heads, device=self.device) * capacity
            self.timeline.share(name, base := base.view(batch, heads, 1))
        return base

    def _arguments(self, buckets: Tensor, window: AttentionWindow) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "values": self.values,
            "buckets": self.buckets,
            "rings": self.rings,
            "index_base": self._base(),
            "first": self.timeline.per_row(self.timeline.firsts),
            "modulus": self.modulus,
            "own": buckets,
            "count_duplicates": window.count_duplicates,
            "dropout": window.dropout,
        }

    def _attend_newest(
        self, query: Tensor, key: Tensor, value: Tensor, buckets: Tensor, window: AttentionWindow
    ) -> Tensor:
        self.prepare(key, value)
        self.write(keys=key, values=value, buckets=buckets.transpose(2, 3))
        rows = self.rings.rows(buckets)
        position = self.timeline.per_row(self.timeline.ends)
        out = attend_newest(query, rows=rows, position=position, **self._arguments(buckets, window))
        if self.timeline.recording:
            self._append(rows, torch.zeros_like(rows), self.timeline.coming_positions())
        else:
            append_newest(self.rings, rows, position)
            self._changes.clear()
        return out

    def _append(self, rows: Tensor, earlier: Tensor, positions: Tensor) -> None:
        keep = self.timeline.recording
        change = append_to_rings(self.rings, rows, earlier, positions, keep_replaced=keep)
        if change is not None:
            self._changes.append(change)
        else:
            self._changes.clear()

    def _attend_blocks(
        self, query: Tensor, key: Tensor, value: Tensor, buckets: Tensor, window: AttentionWindow
    ) -> Tensor:
        """Blocks of new tokens one after the other, each gathering what it sees."""
        self.prepare(key, value)
        self.write(keys=key, values=value, buckets=buckets.transpose(2, 3))
        arguments = self._arguments(buckets, window)
        positions = self.timeline.coming_positions()
        batch, heads, _, size = key.shape
        each = batch * heads * self.rounds * self.window * size
        block = max(1, min(self.window, _BLOCK_ELEMENTS // each))
        parts = []
        for start in range(0, key.shape[2], block):
            part = slice(start, start + block)
            own = buckets[..., part]
            rows, same = self.rings.rows(own), same_bucket_before(own)
            parts.append(
                attend_block(
                    query[:, :, part],
                    key[:, :, part],
                    value[:, :, part],
                    rows=rows,
                    same=same,
                    **{**arguments, "own": own},
                )
            )
            self._append(rows, same.sum(-1), positions[:, part])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _attend_all(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        buckets: Tensor,
        window: AttentionWindow,
        backend: str,
    ) -> Tensor:
        """One pass over all tokens, old and new, of which the new ones are kept."""
        time = self.timeline
        held, past = self.read_last(None, "keys", "values", "buckets")
        length = query.shape[2]
        real = time.padding.real if time.padding is not None else held.new_ones((1, length))
        real = torch.cat((held, real.expand(held.shape[0], -1)), dim=1)
        ends = torch.tensor(time.ends, device=held.device).unsqueeze(1)
        old = (torch.arange(-held.shape[1], 0, device=held.device) + ends).clamp_(min=0)
        positions = torch.cat((old, time.coming_positions()), dim=1)
        every = torch.cat((past[2].transpose(2, 3).to(buckets.dtype), buckets), dim=-1)
        order = self._order(every, None if bool(real.all()) else real)
        keys = torch.cat((past[0], key), dim=2)
        # What the old tokens would ask for is not of interest.
        out, _ = windowed_attention(
            torch.cat((past[0], query), dim=2),
            keys,
            torch.cat((past[1], value), dim=2),
            order,
            window=window,
            real=real,
            backend=backend,
        )
        self._store_all(key, value, buckets, order, positions)
        return out[:, :, held.shape[1] :]

    def _order(self, buckets: Tensor, real: Tensor | None) -> BucketOrder | None:
        """The sorted order of buckets ``[B, H, R, n]``; ``None``: that of the sequence."""
        if real is not None:
            buckets = torch.where(real[:, None, None, :], buckets, self.num_buckets)
            return sort_by_bucket(buckets, self.num_buckets + 1)
        if self.num_buckets == 1:
            return None
        return sort_by_bucket(buckets, self.num_buckets)

    @torch.no_grad()
    def _store_all(
        self,
        key: Tensor,
        value: Tensor,
        buckets: Tensor,
        order: BucketOrder | None,
        positions: Tensor,
    ) -> None:
        """Store new tokens, and make the rings of all tokens of a sorted order."""
        self.prepare(key, value)
        self.write(keys=key, values=value, buckets=buckets.transpose(2, 3))
        self._make_rings(order, positions)

    def _make_rings(self, order: BucketOrder | None, positions: Tensor) -> None:
        batch, heads = self.keys.shape[:2]
        if order is None:
            order = identity_order(positions.shape[1], positions.device)
        self.rings = rings_from_order(
            order,
            positions,
            batch=batch,
            heads=heads,
            num_buckets=self.num_buckets,
            window=self.window,
        )
        self._changes.clear()

    # ---- taking back, rows ----

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
        held, (buckets,) = self.read_last(None, "buckets")
        if held.shape[1] == 0:
            self._clear_rings()
            return
        ends = torch.tensor(self.timeline.ends, device=held.device).unsqueeze(1)
        positions = torch.arange(-held.shape[1], 0, device=held.device) + ends
        order = self._order(buckets.transpose(2, 3).to(torch.int64), held)
        self._make_rings(order, positions.clamp_(min=0))

    def reset(self) -> None:
        """See the base class."""
        super().reset()
        self._changes.clear()

    def take_rows(self, rows: Tensor) -> None:
        """See the base class."""
        if not self.is_initialized:
            return
        super().take_rows(rows)
        chosen = rows.tolist()
        entries, counts = self.rings.entries, self.rings.counts
        self.rings = BucketRings(rearrange(entries, chosen), rearrange(counts, chosen))
        # Slots are numbered through all rows, so recorded changes do not fit any more.
        self._changes.clear()
