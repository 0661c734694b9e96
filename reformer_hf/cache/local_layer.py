"""Cache layer of local attention: the tokens of one window."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_layer import TokenCacheLayer
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.local_attention import local_attention
from reformer_hf.ops.padding import Padding

# Tokens beyond the window, which `crop` can take back without a recording.
ROLLBACK_TOKENS = 32


class LocalCacheLayer(TokenCacheLayer):
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
        self._resize(window + ROLLBACK_TOKENS)

    def _resize(self, places: int) -> None:
        self.places = self.modulus = places
        # Of every row the tokens from `peak - depth` on are stored, up to its end.
        self._peaks: tuple[int, ...] = ()
        self._depth = places

    # ---- new tokens ----

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, window: AttentionWindow, backend: str
    ) -> Tensor:
        """Attention of new tokens ``[B, H, n, D]`` to the window before each; they are stored."""
        if query.shape[2] == 1 and self.timeline.padding is None:
            self.store(key, value)
            return F.scaled_dot_product_attention(
                query,
                self.keys,
                self.values,
                attn_mask=self.visible_places(self.window),
                dropout_p=window.dropout,
            )
        _, held, (keys, values) = self.read_last(self.window, "keys", "values")
        # Cached keys take the places of queries that are not cached: their outputs are discarded.
        out, _ = local_attention(
            torch.cat((keys, query), dim=2),
            torch.cat((keys, key), dim=2),
            torch.cat((values, value), dim=2),
            window=window,
            padding=Padding.from_attention_mask(self.with_coming(held)),
            backend=backend,
        )
        self.store(key, value)
        return out[:, :, held.shape[1] :]

    def _store(self, **new: Tensor) -> None:
        super()._store(**new)
        time = self.timeline
        self._peaks = tuple(map(max, self._peaks or time.ends, time.coming_ends))
        self._depth = min(self.places, self._depth + min(time.coming_lengths))

    def _make_room(self, key: Tensor, value: Tensor) -> None:
        """While recording, nothing since the last crop is overwritten."""
        time = self.timeline
        if time.recording:
            pairs = zip(time.coming_ends, time.anchors, strict=True)
            since = max(end - anchor for end, anchor in pairs)
            if self.window + since > self.places:
                self._move(self.window + 2 * since)
        super()._make_room(key, value)

    @torch.no_grad()
    def _move(self, places: int) -> None:
        """Places for another number of tokens; as many of the last ones as fit stay."""
        if not self.is_initialized:
            self._resize(places)
            return
        cropped = max(map(int.__sub__, self._peaks, self.timeline.ends))
        depth = min(places, self._depth - cropped)
        position, held, (keys, values) = self.read_last(depth, "keys", "values")
        row, column = held.nonzero(as_tuple=True)
        self._resize(places)
        self._peaks, self._depth = self.timeline.ends, depth
        self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]
        self._grow(min(places, max(self.timeline.ends)))
        place = self._place(position[row, column])
        self.keys[row, :, place] = keys[row, :, column]
        self.values[row, :, place] = values[row, :, column]

    # ---- forgetting, rows ----

    def check_crop(self, ends: tuple[int, ...]) -> None:
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
        if self.places > 4 * (self.window + ROLLBACK_TOKENS):
            self._move(self.window + ROLLBACK_TOKENS)

    def reset(self) -> None:
        super().reset()
        self._resize(self.window + ROLLBACK_TOKENS)

    def take_rows(self, rows: Tensor) -> None:
        super().take_rows(rows)
        if self._peaks:
            self._peaks = tuple(self._peaks[i] for i in rows.tolist())
