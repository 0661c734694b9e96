"""Cache layer of full attention: all tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.cache.token_layer import TokenCacheLayer

# Elements of an attention mask that are formed at a time.
_MASK_ELEMENTS = 1 << 24


class FullCacheLayer(TokenCacheLayer):
    """Keys and values of all tokens, or of the last ``max_tokens``."""

    _layer_type = "reformer_full"

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of new tokens ``[B, H, n, D]`` to stored ones and, causally, to each other.

        The new tokens are stored.
        """
        time = self.timeline
        if query.shape[2] == 1 and time.padding is None:
            self.store(key, value)
            if self.modulus is None and time.uniform:
                held = slice(time.firsts[0], time.ends[0] + 1)
                keys, values, mask = self.keys[:, :, held], self.values[:, :, held], None
            else:
                keys, values, mask = self.keys, self.values, self.visible_places(None)
            return F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, dropout_p=dropout
            )
        keys, values, real = self.read_with(key, value)
        return self._attend_all(query, keys, values, real, dropout)

    def read_with(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stored keys and values and the new ones ``[B, H, n, D]`` behind them, and which are real.

        The new ones are stored.

        Returns:
            ``[B, H, past + n, D]`` twice, and ``[B, past + n]`` bool.
        """
        _, held, (keys, values) = self.read_last(None, "keys", "values")
        real = self.with_coming(held)
        keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        self.store(key, value)
        return keys, values, real

    def _attend_all(
        self, query: Tensor, keys: Tensor, values: Tensor, real: Tensor, dropout: float
    ) -> Tensor:
        """In slices of the queries, so that masks stay small."""
        length, total = query.shape[2], keys.shape[2]
        size = max(1, _MASK_ELEMENTS // real.numel())
        place = torch.arange(total, device=query.device)
        parts = []
        for start in range(0, length, size):
            own = place[total - length :][start : start + size].unsqueeze(1)
            # A padding token sees itself, so that no row is empty.
            mask = (real[:, None, None, :] & (place <= own)) | (place == own)
            parts.append(
                F.scaled_dot_product_attention(
                    query[:, :, start : start + size],
                    keys,
                    values,
                    attn_mask=mask,
                    dropout_p=dropout,
                )
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
