"""Keys and values of the tokens of a layer: stored, read by number, forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from reformer_hf.cache.timeline import Timeline, of_rows

# Buffers that have to grow get an eighth more than they need, so that a token is copied a bounded
# number of times and little is held that is not used.
_GROWTH, _LEAST_GROWTH = 8, 64
# Where the cache has a maximum of tokens: places beyond it, so that this many tokens of a call can
# be stored before the oldest leave.
ROOM_FOR_NEW_TOKENS = 32


def rearrange(buffer: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a buffer ``[B, ..]``, in place where only some of them change."""
    moved = [i for i, source in enumerate(rows) if source != i]
    if len(rows) != buffer.shape[0] or len(moved) == len(rows):
        return buffer.index_select(0, torch.tensor(rows, device=buffer.device))
    buffer[moved] = buffer[[rows[i] for i in moved]]
    return buffer


class TokenCacheLayer(CacheLayerMixin):
    """What all kinds of cache layers have in common.

    Token ``p`` of a row stands at place ``p`` of buffers that grow; or, where only the last tokens
    are ever read, at place ``p mod modulus`` of buffers of a fixed size.

    Args:
        timeline: lengths of the rows.

    Attributes:
        keys: ``[B, H, capacity, D]``; ``None`` before the first tokens.
        values: ``[B, H, capacity, D]``, likewise.
        modulus: places of a buffer of a fixed size; ``None``: buffers grow.
        planned_capacity: tokens that a row will have, as far as known.
    """

    is_croppable = True
    # Shapes and dtypes follow from the first keys, and the hash functions from the rows' lengths.
    supports_early_init = False

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        kept = timeline.max_tokens
        self.modulus = None if kept is None else kept + ROOM_FOR_NEW_TOKENS
        self.planned_capacity = 0

    # ---- storing ----

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers for keys and values like these ``[B, H, n, D]``."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros((batch, heads, 0, size))
        self.values = value_states.new_zeros((batch, heads, 0, value_states.shape[-1]))
        self.is_initialized = True

    def store(self, key: Tensor, value: Tensor) -> None:
        """Store keys and values ``[B, H, n, D]`` of the coming tokens.

        Raises:
            ValueError: another dtype than that of the tokens before.
        """
        self._store(keys=key, values=value)

    def _store(self, **new: Tensor) -> None:
        """Store ``[B, H, n, ..]`` of the coming tokens; of too many, the last ones stay.

        What is stored is a copy without a history: gradients end at the cache.
        """
        self._make_room(new["keys"], new["values"])
        time, modulus = self.timeline, self.modulus
        new = {name: x.detach() for name, x in new.items()}
        if time.uniform:
            skip = 0 if modulus is None else max(0, time.coming - modulus)
            start, count = time.ends[0] + skip, time.coming - skip
            if modulus is not None:
                start %= modulus
            fits = count if modulus is None else min(count, modulus - start)
            for name, x in new.items():
                buffer = getattr(self, name)
                buffer[:, :, start : start + fits] = x[:, :, skip : skip + fits]
                if fits < count:
                    buffer[:, :, : count - fits] = x[:, :, skip + fits :]
            return
        position, kept = time.coming_positions(), time.coming_real()
        if modulus is not None:
            kept = kept & (position >= of_rows(time.coming_ends, kept.device) - modulus)
        row, column = kept.nonzero(as_tuple=True)
        place = self._place(position[row, column])
        for name, x in new.items():
            getattr(self, name)[row, :, place] = x[row, :, column].to(getattr(self, name).dtype)

    def _place(self, position: Tensor) -> Tensor:
        return position if self.modulus is None else position.remainder(self.modulus)

    def _make_room(self, key: Tensor, value: Tensor) -> None:
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        if key.dtype != self.dtype:
            raise ValueError(
                f"`past_key_values` holds {self.dtype}, got keys of dtype {key.dtype}; was the "
                "model converted, or autocast switched, since it was made?"
            )
        self.prefetch()
        needed = max(self.timeline.coming_ends)
        if self.modulus is not None:
            needed = min(needed, self.modulus)
        if needed > self.keys.shape[2]:
            limit = needed + max(needed // _GROWTH, _LEAST_GROWTH)
            if self.modulus is not None:
                limit = min(limit, self.modulus)
            if needed <= self.planned_capacity < limit:
                limit = self.planned_capacity
            self._grow(limit)

    def _buffers(self) -> dict[str, Tensor]:
        """Everything with a place for every token, by attribute: ``[B, H, capacity, ..]``."""
        return {"keys": self.keys, "values": self.values}

    def _grow(self, capacity: int) -> None:
        for name, old in self._buffers().items():
            new = old.new_zeros((*old.shape[:2], capacity, *old.shape[3:]))
            new[:, :, : old.shape[2]] = old
            setattr(self, name, new)

    # ---- reading ----

    def read_last(self, limit: int | None, *names: str) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The last stored tokens, or all of them, in order; rows end with their newest token.

        Args:
            limit: how many of a row at most; ``None``: all.
            *names: of the buffers.

        Returns:
            ``[B, n]`` int64 positions, ``[B, n]`` bool, which of them hold a token, and
            ``[B, H, n, ..]`` for every name.
        """
        time = self.timeline
        kept = [end - first for end, first in zip(time.ends, time.firsts, strict=True)]
        length = max(kept) if limit is None else min(max(kept), limit)
        position = torch.arange(-length, 0, device=self.device) + self._of_rows(time.ends)
        held = position >= self._of_rows(time.firsts)
        start = time.ends[0] - length
        if self.modulus is None and len(set(time.ends)) == 1 and start >= 0:
            found = [getattr(self, name)[:, :, start : time.ends[0]] for name in names]
            return position, held, found
        position = position.clamp(min=0)
        place = self._place(position)[:, None, :, None]
        found = []
        for name in names:
            buffer = getattr(self, name)
            index = place.expand(-1, buffer.shape[1], -1, buffer.shape[3])
            found.append(buffer.gather(2, index))
        return position, held, found

    def with_coming(self, held: Tensor) -> Tensor:
        """``[B, past + n]`` bool: stored and coming columns that hold a token."""
        return torch.cat((held, self.timeline.coming_real().to(held.device)), dim=1)

    def _of_rows(self, numbers: Sequence[int]) -> Tensor:
        return of_rows(numbers, self.device)

    def visible_places(self, window: int | None) -> Tensor:
        """Which places the coming token of every row sees, ``[B, 1, 1, capacity]`` bool.

        Args:
            window: how many tokens before it; ``None``: all that are stored.
        """
        capacity = self.keys.shape[2]
        key = ("visible", window, capacity, self.modulus)
        return self.timeline.shared(key, lambda: self._visible_places(window, capacity))

    def _visible_places(self, window: int | None, capacity: int) -> Tensor:
        time, position = self.timeline, torch.arange(capacity, device=self.device)
        ends, low = self._of_rows(time.ends), self._of_rows(time.firsts)
        if window is not None:
            low = low.maximum(ends - window)
        if self.modulus is not None:
            position = ends - (ends - position).remainder(self.modulus)
        return ((position >= low) & (position <= ends))[:, None, None, :]

    # ---- forgetting, rows ----

    def check_crop(self, ends: tuple[int, ...]) -> None:
        """Make sure that rows can be made to end earlier.

        Raises:
            ValueError: tokens would be needed that are not stored any more.
        """

    def crop_tokens(self, lost: tuple[int, ...]) -> None:
        """Forget what is derived from the last tokens; the timeline has dropped them already."""

    def reset(self) -> None:
        """Forget everything."""
        if self.is_initialized:
            self.keys, self.values = self.keys.new_empty(0), self.values.new_empty(0)
        self.is_initialized = False

    def take_rows(self, rows: Tensor) -> None:
        """Row ``i`` becomes what row ``rows[i]`` was."""
        if self.is_initialized:
            for name, buffer in self._buffers().items():
                setattr(self, name, rearrange(buffer, rows.tolist()))

    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(x.nbytes for x in self._buffers().values()) if self.is_initialized else 0

    # ---- transformers' interface ----

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Refused: a layer attends to its tokens itself, and never hands out all keys and values.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"a {type(self).__name__} attends to its own tokens; pass `past_key_values` to a "
            "Reformer instead of calling `update`"
        )

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.timeline.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that a mask covers, and how many of the first ones it leaves out (none)."""
        return self.timeline.columns + query_length, 0

    def get_max_length(self) -> int:
        """-1: any number of tokens can follow."""
        return -1
