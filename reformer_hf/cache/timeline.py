"""How long the rows of a cache are: what all its layers share.

Real tokens of a row are numbered 0, 1, 2, ... in the order in which they came; padding has no
number and is never stored. A *column* is a place of the batch, padding or not, which is what
``generate`` counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.ops.padding import Padding


def of_rows(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Numbers, one of every row, as ``[B, 1]`` int64."""
    return torch.tensor(numbers, device=device).unsqueeze(1)


class Timeline:
    """The numbers of the tokens that are stored, and of those that are just coming in.

    Attributes:
        max_tokens: how many tokens of a row stay between two calls; ``None``: all.
        columns: columns so far, the coming ones not included.
        ends: for every row, the number that its next token will have.
        firsts: for every row, the oldest token that is still stored.
        anchors: ``ends`` after the last crop, or when the recording began.
        recording: everything since the last :meth:`crop` can be taken back cheaply.
        coming: columns of the call that is going on.
        padding: which of these are real; ``None`` if all are.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self.max_tokens = max_tokens
        self.recording = False
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.columns = 0
        self.ends: tuple[int, ...] = ()
        self.firsts: tuple[int, ...] = ()
        self.anchors: tuple[int, ...] = ()
        self.coming = 0
        self.padding: Padding | None = None
        self.device = torch.device("cpu")
        self._real: Tensor | None = None
        self._shared: dict[object, Tensor] = {}

    @property
    def batch(self) -> int:
        """Rows; 0 before the first call."""
        return len(self.ends)

    @property
    def empty(self) -> bool:
        """No row has a token."""
        return not any(self.ends)

    @property
    def uniform(self) -> bool:
        """All rows have the same numbers, and nothing that comes is padding."""
        return self.padding is None and len(set(self.ends)) == 1 and len(set(self.firsts)) == 1

    def open(self, batch: int, columns: int, padding: Padding | None, device: torch.device) -> None:
        """A call begins.

        Raises:
            ValueError: another batch size or device than before.
        """
        if self.batch and batch != self.batch:
            raise ValueError(
                f"`past_key_values` holds a batch of {self.batch} rows, got inputs of {batch}"
            )
        if self.batch and device != self.device:
            raise ValueError(
                f"`past_key_values` is on {self.device}, got inputs on {device}; see its `to`"
            )
        if not self.batch:
            self.ends = self.firsts = self.anchors = (0,) * batch
            self.device = device
        self.coming, self.padding = columns, padding
        self._shared = {}

    @property
    def coming_ends(self) -> tuple[int, ...]:
        """``ends`` as they will be when the coming tokens are stored."""
        return tuple(end + n for end, n in zip(self.ends, self.coming_lengths, strict=True))

    @property
    def coming_lengths(self) -> tuple[int, ...]:
        """Real tokens that are coming in, of every row."""
        if self.padding is None:
            return (self.coming,) * self.batch
        if self.padding.lengths is None:
            raise ValueError("`past_key_values` cannot be used with padding in a compiled graph")
        return self.padding.lengths

    def coming_part(self, *heads: Tensor) -> tuple[Tensor, ...]:
        """Of ``[B, H, n, D]`` the coming columns; the ``chunk`` pattern adds some behind them."""
        return tuple(x[:, :, : self.coming] for x in heads)

    def close(self) -> None:
        """The tokens that came are stored; the oldest leave, if they are too many."""
        if self.padding is not None or self._real is not None:
            self._real = torch.cat((self._history(), self.coming_real()), dim=1)
        self.ends = self.coming_ends
        self.columns += self.coming
        self.coming, self.padding = 0, None
        self._shared = {}
        if self.max_tokens is not None:
            self.evict(self.max_tokens)

    def evict(self, keep: int) -> None:
        """All but the last ``keep`` tokens of every row leave."""
        self.firsts = tuple(
            max(first, end - keep) for first, end in zip(self.firsts, self.ends, strict=True)
        )

    def tokens_in_last(self, columns: int) -> tuple[int, ...]:
        """How many tokens of each row stand in the last ``columns``."""
        if self._real is None:
            return (columns,) * self.batch
        kept = self.columns - columns
        return tuple(int(n) for n in self._real[:, kept:].sum(dim=1).tolist())

    def crop(self, columns: int, lost: tuple[int, ...]) -> None:
        """The last ``columns``, with ``lost`` tokens of each row, leave."""
        if self._real is not None:
            self._real = self._real[:, : self.columns - columns]
        self.ends = tuple(end - n for end, n in zip(self.ends, lost, strict=True))
        self.firsts = tuple(map(min, self.firsts, self.ends))
        self.columns -= columns
        self.anchors = self.ends

    def take_rows(self, rows: Tensor) -> None:
        """Row ``i`` becomes what row ``rows[i]`` was."""
        chosen = rows.tolist()
        for name in ("ends", "firsts", "anchors"):
            setattr(self, name, tuple(getattr(self, name)[i] for i in chosen))
        if self._real is not None:
            self._real = self._real.index_select(0, rows.to(self._real.device))

    def record(self) -> None:
        """From now on, everything up to the next :meth:`crop` can be taken back exactly."""
        if not self.recording:
            self.recording, self.anchors = True, self.ends

    def shared(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """``make()``, which is called once for all layers until the call ends."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def per_row(self, numbers: tuple[int, ...]) -> Tensor | int:
        """Numbers of all rows as ``[B, 1, 1, 1]`` int64, or one number if all are the same."""
        if len(set(numbers)) == 1:
            return numbers[0]
        return self.shared(numbers, lambda: of_rows(numbers, self.device)[..., None, None])

    def coming_positions(self) -> Tensor:
        """``[B, n]`` int64, the numbers of the coming tokens (of padding: the nearest)."""
        return self.shared("positions", self._coming_positions)

    def _coming_positions(self) -> Tensor:
        ends = of_rows(self.ends, self.device)
        if self.padding is None:
            return torch.arange(self.coming, device=self.device) + ends
        return (self.padding.real.cumsum(dim=1) - 1 + ends).clamp_(min=0)

    def coming_real(self) -> Tensor:
        """``[B, n]`` bool, which of the coming columns hold a token."""
        if self.padding is not None:
            return self.padding.real
        return torch.ones((self.batch, self.coming), dtype=torch.bool, device=self.device)

    def _history(self) -> Tensor:
        if self._real is not None:
            return self._real
        return F.pad(self.coming_real()[:, :0], (0, self.columns), value=True)
