"""Memory of a layer with local attention: the tokens of one window."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_memory import TokenMemory
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.local_attention import local_attention
from reformer_hf.ops.padding import Padding

# Tokens beyond the window that can be taken back without having asked for it before.
SPARE = 32


class LocalMemory(TokenMemory):
    """Keys and values of the last ``window`` tokens, and of a few that allow for a rollback.

    Args:
        timeline: lengths of the rows.
        window: how many tokens before it a token sees.
    """

    _layer_type = "reformer_local"
    is_sliding = True

    def __init__(self, timeline: Timeline, window: int) -> None:
        super().__init__(timeline)
        self.window = window
        self._resize(window + SPARE)

    def _resize(self, places: int) -> None:
        self.places = self.modulus = places
        # Of every row the tokens from `peak - depth` on are there, up to its end.
        self._peaks: tuple[int, ...] = ()
        self._depth = places

    def prepare(self, key: Tensor, value: Tensor) -> None:
        """See the base class; while recording, nothing since the last crop is overwritten."""
        time = self.timeline
        if time.recording:
            pairs = zip(time.coming_ends, time.anchors, strict=True)
            since = max(end - anchor for end, anchor in pairs)
            if self.window + since > self.places:
                self._move(self.window + 2 * since)
        super().prepare(key, value)

    def write(self, **new: Tensor) -> None:
        """See the base class."""
        super().write(**new)
        time = self.timeline
        self._peaks = tuple(map(max, self._peaks or time.ends, time.coming_ends))
        self._depth = min(self.places, self._depth + min(time.coming_lengths))

    @torch.no_grad()
    def _move(self, places: int) -> None:
        """Places for another number of tokens; as many of the last ones as fit stay."""
        if not self.is_initialized:
            self._resize(places)
            return
        cropped = max(map(int.__sub__, self._peaks, self.timeline.ends))
        depth = min(places, self._depth - cropped)
        held, (keys, values) = self.read_last(depth, "keys", "values")
        ends = torch.tensor(self.timeline.ends, device=self.device).unsqueeze(1)
        position = torch.arange(-held.shape[1], 0, device=self.device) + ends
        row, column = held.nonzero(as_tuple=True)
        slot = position[row, column].remainder(places)
        self._resize(places)
        self._peaks, self._depth = self.timeline.ends, depth
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self._grow(min(places, max(self.timeline.ends)))
        self.keys[row, :, slot] = keys[row, :, column]
        self.values[row, :, slot] = values[row, :, column]

    def remember(self, key: Tensor, value: Tensor) -> None:
        """Store keys and values ``[B, H, n, D]``."""
        self.prepare(key, value)
        self.write(keys=key, values=value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens ``[B, H, n, D]`` to the window before each."""
        time = self.timeline
        if query.shape[2] == 1 and time.padding is None:
            self.remember(key, value)
            return F.scaled_dot_product_attention(
                query,
                self.keys,
                self.values,
                attn_mask=self.visible_slots(self.window),
                dropout_p=window.dropout,
            )
        held, (keys, values) = self.read_last(self.window, "keys", "values")
        length, past = query.shape[2], held.shape[1]
        real = time.padding.real if time.padding is not None else held.new_ones((1, length))
        padding = Padding.from_attention_mask(
            torch.cat((held, real.expand(held.shape[0], -1)), dim=1)
        )
        join = partial(torch.cat, dim=2)
        # What the old tokens would ask for is not of interest.
        out, _ = local_attention(
            join((keys, query)),
            join((keys, key)),
            join((values, value)),
            window=window,
            padding=padding,
            backend=backend,
        )
        self.remember(key, value)
        return out[:, :, past:]

    def check_crop(self, ends: tuple[int, ...]) -> None:
        """See the base class."""
        time = self.timeline
        for end, first, peak in zip(ends, time.firsts, self._peaks, strict=True):
            oldest = max(first, end - self.window, 0)
            if oldest < min(end, peak - self._depth):
                raise ValueError(
                    f"`crop` can take back {self._depth - self.window} tokens of a layer with a "
                    f"window of {self.window}, got {max(time.ends) - max(ends)}; call "
                    "`activate_past_recording` before the tokens come in"
                )

    def crop_tokens(self, lost: tuple[int, ...]) -> None:
        """Give back the room for what was recorded."""
        del lost
        if self.places > 4 * (self.window + SPARE):
            self._move(self.window + SPARE)

    def reset(self) -> None:
        """See the base class."""
        super().reset()
        self._resize(self.window + SPARE)

    def take_rows(self, rows: Tensor) -> None:
        """See the base class."""
        super().take_rows(rows)
        if self._peaks:
            self._peaks = tuple(self._peaks[i] for i in rows.tolist())
