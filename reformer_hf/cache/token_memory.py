"""Keys and values of the tokens of a layer: written, read by number, forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from reformer_hf.cache.timeline import Timeline

# A memory that has to grow gets an eighth more than it needs, so that a token is copied a bounded
# number of times and little is held that is not used.
_GROWTH, _LEAST_GROWTH = 8, 64


def rearrange(buffer: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a buffer ``[B, ..]``, in place where only some of them change."""
    moved = [i for i, source in enumerate(rows) if source != i]
    if len(rows) != buffer.shape[0] or len(moved) == len(rows):
        return buffer.index_select(0, torch.tensor(rows, device=buffer.device))
    buffer[moved] = buffer[[rows[i] for i in moved]]
    return buffer


class TokenMemory(CacheLayerMixin):
    """What all kinds of layers have in common.

    Token ``p`` of a row stands at ``p`` in buffers that grow; or, where only the last tokens are
    ever read, at ``p mod modulus`` in buffers of a fixed size.

    Attributes:
        keys: ``[B, H, capacity, D]``.
        values: ``[B, H, capacity, D]``.
        modulus: see above; ``None``: buffers grow.
    """

    is_croppable = True
    # Shapes and dtypes follow from the first keys, and the hash functions from the rows' lengths.
    supports_early_init = False

    def __init__(self, timeline: Timeline, modulus: int | None = None) -> None:
        super().__init__()
        self.timeline = timeline
        self.modulus = modulus
        self.planned_capacity = 0

    # ---- writing ----

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers for keys and values like these ``[B, H, n, D]``."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, size = key_states.shape
        self.keys = key_states.new_zeros((batch, heads, 0, size))
        self.values = value_states.new_zeros((batch, heads, 0, value_states.shape[-1]))
        self.is_initialized = True

    def prepare(self, key: Tensor, value: Tensor) -> None:
        """Room for the coming keys and values ``[B, H, n, D]``.

        Raises:
            ValueError: another dtype than that of the memory.
        """
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
        capacity = self.keys.shape[2]
        if needed > capacity:
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

    def write(self, **new: Tensor) -> None:
        """Store ``[B, H, n, ..]`` of the coming tokens; of too many, the last ones stay.

        What is stored is a copy without a history: gradients end at the memory.
        """
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
        position = time.coming_positions()
        kept = self._kept_of_coming(position)
        row, column = kept.nonzero(as_tuple=True)
        slot = position[row, column]
        if modulus is not None:
            slot = slot.remainder(modulus)
        for name, x in new.items():
            getattr(self, name)[row, :, slot] = x[row, :, column].to(getattr(self, name).dtype)

    def _kept_of_coming(self, position: Tensor) -> Tensor:
        time = self.timeline
        real = time.padding.real if time.padding is not None else torch.ones_like(position).bool()
        if self.modulus is None:
            return real
        ends = torch.tensor(time.coming_ends, device=position.device).unsqueeze(1)
        limit = ends - self.modulus
        return real & (position >= limit)

    # ---- reading ----

    def read_last(self, limit: int | None, *names: str) -> tuple[Tensor, list[Tensor]]:
        """The last tokens in memory, or all of them, in order; rows end with their newest token.

        Args:
            limit: how many of a row at most; ``None``: all.
            *names: of the buffers.

        Returns:
            ``[B, n]`` bool, which places hold a token, and ``[B, H, n, ..]`` for every name.
        """
        time = self.timeline
        kept = [end - first for end, first in zip(time.ends, time.firsts, strict=True)]
        length = max(kept)
        if limit is not None:
            length = min(length, limit)
        device = self.device
        ends = torch.tensor(time.ends, device=device).unsqueeze(1)
        firsts = torch.tensor(time.firsts, device=device).unsqueeze(1)
        position = torch.arange(-length, 0, device=device) + ends
        held = position >= firsts
        start = time.ends[0] - length
        if self.modulus is None and len(set(time.ends)) == 1 and start >= 0:
            return held, [getattr(self, n)[:, :, start : time.ends[0]] for n in names]
        slot = position.clamp(min=0)
        if self.modulus is not None:
            slot = slot.remainder(self.modulus)
        found = []
        for name in names:
            buffer = getattr(self, name)
            index = slot.view(slot.shape[0], 1, -1, *(1,) * (buffer.dim() - 3))
            index = index.expand(-1, buffer.shape[1], -1, *buffer.shape[3:])
            found.append(buffer.gather(2, index))
        return held, found

    # ---- transformers' interface ----

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Not how this memory works: it attends itself, and never hands out all keys and values.

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

    def check_crop(self, ends: tuple[int, ...]) -> None:
        """Make sure that rows can be made to end earlier.

        Raises:
            ValueError: tokens would be needed that are not in memory any more.
        """

    def crop_tokens(self, lost: tuple[int, ...]) -> None:
        """Forget what is derived from the last tokens; the timeline has dropped them already."""

    def visible_slots(self, window: int | None) -> Tensor:
        """Which places the coming token of every row sees, ``[B or 1, 1, 1, capacity]`` bool.

        Args:
            window: how many tokens before it; ``None``: all that are in memory.
        """
        time, capacity = self.timeline, self.keys.shape[2]
        key = ("visible", window, capacity, self.modulus)
        mask = time.shared(key)
        if mask is None:
            lows = [
                first if window is None else max(first, end - window)
                for first, end in zip(time.firsts, time.ends, strict=True)
            ]
            ends = torch.tensor(time.ends, device=self.device).unsqueeze(1)
            low = torch.tensor(lows, device=self.device).unsqueeze(1)
            slot = torch.arange(capacity, device=self.device)
            if self.modulus is None:
                position = slot.expand(len(lows), -1)
            else:
                position = ends - (ends - slot).remainder(self.modulus)
            mask = time.share(key, ((position >= low) & (position <= ends))[:, None, None, :])
        return mask

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
