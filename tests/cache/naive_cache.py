"""A cache that is a list of tokens for every row, and attention by its definition.

Slow and obvious: what the rings, the circular buffers and the rollback are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from reformer_hf.ops.shared_keys import normalize_keys


@dataclass
class Token:
    """One token of one row: `key` and `value` are `[H, D]`, `buckets` is `[H, R]`."""

    key: Tensor
    value: Tensor
    buckets: Tensor


@dataclass
class NaiveCache:
    """Rows of tokens; `None` in a column is padding.

    Attributes:
        kind: `lsh`, `local` or `full`.
        window: tokens of a bucket (`lsh`) or of the sequence (`local`) that a token sees.
        count_duplicates: a token that several rounds see counts once for each.
        max_tokens: how many tokens stay after an append.
    """

    kind: str
    window: int
    count_duplicates: bool
    max_tokens: int | None
    rows: list[list[Token | None]] = field(default_factory=list)
    forgotten: list[set[int]] = field(default_factory=list)

    def append(self, query: Tensor, tokens: list[list[Token | None]]) -> Tensor:
        """Outputs `[B, H, n, D]` of new tokens, `query` `[B, H, n, D]`; zero for padding."""
        if not self.rows:
            self.rows = [[] for _ in tokens]
            self.forgotten = [set() for _ in tokens]
        out = torch.zeros_like(query)
        for b, new in enumerate(tokens):
            for i, token in enumerate(new):
                if token is not None:
                    for h in range(query.shape[1]):
                        out[b, h, i] = self._output(query[b, h, i], token, b, h)
                self.rows[b].append(token)
        if self.max_tokens is not None:
            self.evict(self.max_tokens)
        return out

    def _kept(self, row: int) -> list[Token]:
        gone = self.forgotten[row]
        return [t for i, t in enumerate(self.rows[row]) if t is not None and i not in gone]

    def _output(self, query: Tensor, token: Token, row: int, head: int) -> Tensor:
        past = self._kept(row)
        scale = 1.0 if self.kind == "lsh" else query.shape[-1] ** -0.5
        if self.kind == "lsh":
            seen: list[Token] = []
            for r in range(token.buckets.shape[1]):
                bucket = token.buckets[head, r]
                seen += [t for t in past if t.buckets[head, r] == bucket][-self.window :]
            if not self.count_duplicates:
                seen = list({id(t): t for t in seen}.values())
            if not seen:
                return token.value[head]
        else:
            seen = [*(past[-self.window :] if self.kind == "local" else past), token]
        scores = torch.stack([scale * query @ t.key[head] for t in seen])
        weights = scores.softmax(0)
        return (weights.unsqueeze(-1) * torch.stack([t.value[head] for t in seen])).sum(0)

    def crop(self, columns: int) -> None:
        """Take back the last columns; tokens that were evicted before stay away."""
        for row, gone in zip(self.rows, self.forgotten, strict=True):
            del row[len(row) - columns :]
            gone -= {i for i in gone if i >= len(row)}

    def evict(self, keep: int) -> None:
        """Forget all but the last `keep` tokens of every row."""
        for row, gone in zip(self.rows, self.forgotten, strict=True):
            real = [i for i, t in enumerate(row) if t is not None and i not in gone]
            gone.update(real[: max(0, len(real) - keep)])

    def take_rows(self, chosen: list[int]) -> None:
        """Row `i` becomes what row `chosen[i]` was."""
        self.rows = [list(self.rows[i]) for i in chosen]
        self.forgotten = [set(self.forgotten[i]) for i in chosen]


def make_tokens(
    kind: str, key: Tensor, value: Tensor, buckets: Tensor | None, real: Tensor
) -> list[list[Token | None]]:
    """Tokens of all rows from `key`, `value` `[B, H, n, D]`, `buckets` `[B, H, R, n]`."""
    batch, heads, length, _ = key.shape
    keys = normalize_keys(key) if kind == "lsh" else key
    none = torch.zeros(heads, 1)
    return [
        [
            Token(keys[b, :, i], value[b, :, i], none if buckets is None else buckets[b, :, :, i])
            if real[b, i]
            else None
            for i in range(length)
        ]
        for b in range(batch)
    ]
