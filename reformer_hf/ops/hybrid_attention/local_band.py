"""The local window as tiles in the order of the sequence, and the order in which queries are kept.

The ``M`` queries of the ``G`` heads that share keys are kept in *slots*, ``[t, g, c]``: tile ``t``
holds the positions ``t C .. t C + C`` of all heads. A tile needs the aligned blocks of ``C`` keys
that hold its own positions and the ``h = ceil((L - 1) / C)`` before them (not causal: and behind
them), so that its keys are one contiguous piece of the sequence and no key is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

_MIN_TILE, _MAX_TILE = 16, 128


@dataclass(frozen=True)
class HeadVectors:
    """Vectors ``[G, M, D]`` as one list, without a copy where they lie in memory as they should.

    Attributes:
        flat: ``[n, D]``.
        head_step: places from a head to the next.
        token_step: places from a token to the next.
        tokens: ``M``.
    """

    flat: Tensor
    head_step: int
    token_step: int
    tokens: int

    @classmethod
    def of(cls, x: Tensor) -> HeadVectors:
        """The list of ``[G, M, D]``."""
        heads, tokens, size = x.shape
        if x.stride(2) != 1 or any(s % size for s in (x.stride(0), x.stride(1))):
            x = x.contiguous()
        head_step, token_step = x.stride(0) // size, x.stride(1) // size
        length = (heads - 1) * head_step + (tokens - 1) * token_step + 1
        flat = x.as_strided((length, size), (size, 1), x.storage_offset())
        return cls(flat, head_step, token_step, tokens)

    def places(self, numbers: Tensor) -> Tensor:
        """Where the vectors with the numbers ``g M + m`` stand in the list."""
        head = numbers.div(self.tokens, rounding_mode="floor")
        return head * self.head_step + (numbers - head * self.tokens) * self.token_step


@dataclass(frozen=True)
class LocalBand:
    """Geometry of the local window for the last ``M`` of ``N`` tokens.

    Attributes:
        group: heads that share keys, ``G``.
        queries: ``M``.
        length: keys, ``N``.
        reach: the local window, ``L``.
        causal: a query sees no later key.
        device: where masks are made.
    """

    group: int
    queries: int
    length: int
    reach: int
    causal: bool
    device: torch.device

    @cached_property
    def tile(self) -> int:
        """Positions of a tile, ``C``: about a quarter of the window."""
        return min(_MAX_TILE, max(_MIN_TILE, 1 << max(0, self.reach // 4 - 1).bit_length()))

    @cached_property
    def before(self) -> int:
        """Blocks of keys before a tile's own that it needs, ``h``."""
        return -(-(min(self.reach, self.length) - 1) // self.tile)

    @property
    def after(self) -> int:
        """Blocks of keys behind a tile's own."""
        return 0 if self.causal else self.before

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return -(-self.queries // self.tile)

    @property
    def num_keys(self) -> int:
        """Keys of a tile, ``K``."""
        return (self.before + 1 + self.after) * self.tile

    @property
    def rows(self) -> int:
        """Queries of a tile, ``G C``."""
        return self.group * self.tile

    @property
    def first_query(self) -> int:
        """Position of the first query."""
        return self.length - self.queries

    @property
    def first_key(self) -> int:
        """Position of the first key slot; negative where the sequence begins later."""
        return self.first_query - self.before * self.tile

    # ---- queries ----

    def to_slots(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """``[G, M]`` as ``[slots]`` (a copy), with ``fill`` in slots without a query."""
        x = pad(x, (0, self.tiles * self.tile - self.queries), value=fill)
        return x.unflatten(1, (self.tiles, self.tile)).transpose(0, 1).flatten()

    def load_tiles(self, x: Tensor, out: Tensor, start: int) -> Tensor:
        """Vectors ``[G, M, D]`` of the tiles from ``start`` on in ``[T', G C, D]``; 0 elsewhere."""
        by_head = out.view(out.shape[0], self.group, self.tile, -1).transpose(0, 1)
        for own, tiles, count in self._pieces(start, out.shape[0]):
            if count < self.tile:
                by_head[:, tiles] = 0.0
            by_head[:, tiles, :count] = x[:, own].unflatten(1, (-1, count))
        return out

    def store_tiles(self, tiles: Tensor, out: Tensor, start: int) -> None:
        """The inverse of :meth:`load_tiles`, into ``[G, M, D]``."""
        by_head = tiles.view(tiles.shape[0], self.group, self.tile, -1).transpose(0, 1)
        for own, some, count in self._pieces(start, tiles.shape[0]):
            out[:, own].unflatten(1, (-1, count)).copy_(by_head[:, some, :count])

    def _pieces(self, start: int, tiles: int) -> Iterator[tuple[slice, slice, int]]:
        """Queries, tiles (from ``start`` on) and queries of a tile: full ones, and a last one."""
        first, stop = start * self.tile, min((start + tiles) * self.tile, self.queries)
        full = (stop - first) // self.tile
        middle = first + full * self.tile
        if full:
            yield slice(first, middle), slice(0, full), self.tile
        if middle < stop:
            yield slice(middle, stop), slice(full, full + 1), stop - middle

    def from_slots(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_slots`."""
        x = x.unflatten(0, (self.tiles, self.group, self.tile)).transpose(0, 1).flatten(1, 2)
        return x[:, : self.queries]

    @cached_property
    def position(self) -> Tensor:
        """``[slots]`` int64: the position of every slot."""
        own = torch.arange(self.tiles * self.tile, device=self.device) + self.first_query
        return own.view(self.tiles, 1, self.tile).expand(-1, self.group, -1).flatten()

    def numbers_of(self, start: int, stop: int) -> Tensor:
        """``[G * (stop - start)]`` int64: numbers ``g M + m`` of the same, in the same order."""
        own = torch.arange(start, stop, device=self.device) - self.first_query
        head = torch.arange(self.group, device=self.device).unsqueeze(-1) * self.queries
        return (head + own).flatten()

    def slots_of(self, start: int, stop: int) -> Tensor:
        """``[G * (stop - start)]`` int64: slots of the queries at these positions, head by head."""
        own = torch.arange(start, stop, device=self.device) - self.first_query
        slot = own // self.tile * self.rows + own % self.tile
        head = torch.arange(self.group, device=self.device).unsqueeze(-1) * self.tile
        return (head + slot).flatten()

    # ---- keys ----

    @property
    def key_slots(self) -> int:
        """Slots of all keys that the tiles need, ``blocks * C``."""
        return (self.tiles + self.before + self.after) * self.tile

    def to_blocks(self, x: Tensor, out: Tensor) -> Tensor:
        """``[N, D]`` in ``[key slots, D]``: what the tiles need, zeros outside the sequence."""
        first, front = max(0, self.first_key), max(0, -self.first_key)
        own = x[first : min(self.length, self.first_key + out.shape[0])]
        out[:front] = 0
        out[front : front + own.shape[0]] = own
        out[front + own.shape[0] :] = 0
        return out

    def add_blocks_(self, total: Tensor, blocks: Tensor) -> None:
        """Add ``[blocks * C, D]`` to ``[N, D]``, in place."""
        first, front = max(0, self.first_key), max(0, -self.first_key)
        stop = min(self.length, self.first_key + blocks.shape[0])
        total[first:stop] += blocks[front : front + stop - first]

    def key_tiles(self, blocks: Tensor, start: int, stop: int) -> Tensor:
        """Keys of the tiles ``start .. stop`` as an overlapping view ``[stop - start, K, D]``."""
        size = blocks.shape[-1]
        step = self.tile * size
        return blocks.as_strided(
            (stop - start, self.num_keys, size),
            (step, size, 1),
            blocks.storage_offset() + start * step,
        )

    def spread_(self, blocks: Tensor, tiles: Tensor, start: int) -> None:
        """Add ``[T', K, D]`` for the tiles from ``start`` on to ``[blocks * C, D]``, in place."""
        by_block = blocks.view(-1, self.tile, blocks.shape[-1])
        count = tiles.shape[0]
        for index in range(self.before + 1 + self.after):
            part = tiles[:, index * self.tile : (index + 1) * self.tile]
            by_block[start + index : start + index + count] += part

    # ---- who sees whom ----

    @cached_property
    def mask(self) -> Tensor:
        """``[G C, K]``: 0 where a key slot is in the window of a query slot, else ``-inf``."""
        query = torch.arange(self.tile, device=self.device).unsqueeze(-1) + self.before * self.tile
        distance = query - torch.arange(self.num_keys, device=self.device)
        outside = distance.abs() >= self.reach
        if self.causal:
            outside |= distance < 0
        mask = torch.zeros(outside.shape, device=self.device).masked_fill_(outside, -torch.inf)
        return mask.repeat(self.group, 1)

    def outside(self, start: int, stop: int) -> Tensor | None:
        """``[T', 1, K]``: ``-inf`` where a key slot lies outside the sequence; ``None``: none."""
        first = self.first_key + start * self.tile
        last = self.first_key + (stop - 1) * self.tile + self.num_keys
        if first >= 0 and last <= self.length:
            return None
        tile = torch.arange(start, stop, device=self.device).view(-1, 1, 1)
        position = self.first_key + tile * self.tile
        position = position + torch.arange(self.num_keys, device=self.device)
        hidden = (position < 0) | (position >= self.length)
        return torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, -torch.inf)
