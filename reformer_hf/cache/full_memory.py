"""Memory of a layer with full attention: all tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.timeline import Timeline
from reformer_hf.cache.token_memory import TokenMemory

# Places beyond the maximum, so that a call can add some tokens before the oldest leave.
SPARE = 32
# Elements of an attention mask that are formed at a time.
_MASK_ELEMENTS = 1 << 24


class FullMemory(TokenMemory):
    """Keys and values of all tokens, or of the last ``max_tokens``."""

    _layer_type = "reformer_full"

    def __init__(self, timeline: Timeline) -> None:
        kept = timeline.max_tokens
        super().__init__(timeline, None if kept is None else kept + SPARE)

    def remember(self, key: Tensor, value: Tensor) -> None:
        """Store keys and values ``[B, H, n, D]`` of the first tokens."""
        self.prepare(key, value)
        self.write(keys=key, values=value)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of new tokens ``[B, H, n, D]`` to those in memory and, causally, each other."""
        time = self.timeline
        if query.shape[2] == 1 and time.padding is None:
            self.remember(key, value)
            if self.modulus is None and time.uniform:
                held = slice(time.firsts[0], time.ends[0] + 1)
                keys, values, mask = self.keys[:, :, held], self.values[:, :, held], None
            else:
                keys, values, mask = self.keys, self.values, self.visible_slots(None)
            return F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, dropout_p=dropout
            )
        held_mask, (keys, values) = self.read_last(None, "keys", "values")
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        out = self._attend_all(query, keys, values, held_mask, dropout)
        self.remember(key, value)
        return out

    def _attend_all(
        self, query: Tensor, keys: Tensor, values: Tensor, held: Tensor, dropout: float
    ) -> Tensor:
        """In slices of the queries, so that masks stay small."""
        time, length, past = self.timeline, query.shape[2], held.shape[1]
        real = time.padding.real if time.padding is not None else held.new_ones((1, length))
        seen = torch.cat((held, real.expand(held.shape[0], -1)), dim=1)[:, None, None, :]
        size = max(1, _MASK_ELEMENTS // seen.numel())
        place = torch.arange(past + length, device=query.device)
        parts = []
        for start in range(0, length, size):
            stop = min(start + size, length)
            own = place[past + start : past + stop].unsqueeze(1)
            # A padding token sees itself, so that no row is empty.
            mask = (seen & (place <= own)) | (place == own)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start:stop], keys, values, attn_mask=mask, dropout_p=dropout
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
