"""The streams of one forward pass, there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class StreamTape:
    """The two stored streams, handed from step to step.

    In the forward pass they go up; in the backward pass every step finds them as it left them and
    leaves them as they were before it.

    Attributes:
        position: number of steps whose effect the streams contain; ``None``: no streams.
        stored: the two streams at that position, as
            :func:`~reformer_hf.ops.reversible.grid.to_steps` stores them.
        owned: whether nobody else holds a stream, so that it may be changed in place.
    """

    position: int | None = None
    stored: list[Tensor] = field(default_factory=list)
    owned: list[bool] = field(default_factory=lambda: [False, False])

    def load(self, position: int, stored: Sequence[Tensor]) -> None:
        """Begin at a position, with streams that somebody else holds too."""
        self.position, self.stored = position, [s.detach() for s in stored]
        self.share()

    def share(self) -> None:
        """Somebody else holds the streams as they are now."""
        self.owned = [False, False]

    def target(self, index: int) -> Tensor:
        """Where the result of step ``index`` goes: the stream itself, or fresh memory."""
        turn = index % 2
        return self.stored[turn] if self.owned[turn] else torch.empty_like(self.stored[turn])

    def keep(self, index: int) -> Tensor:
        """The stream that step ``index`` is about to change; it then stays as it is."""
        self.owned[index % 2] = False
        return self.stored[index % 2]

    def replace(self, index: int, stored: Tensor, owned: bool = True) -> None:
        """Step ``index`` has made this of its stream, or found it there."""
        self.stored[index % 2], self.owned[index % 2] = stored, owned

    def clear(self) -> None:
        """Let go of the streams."""
        self.position, self.stored = None, []


class Anchor(torch.autograd.Function):
    """Passes the streams on, and puts them on the tape when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, tape: StreamTape, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        ctx.tape, ctx.position = tape, tape.position
        ctx.save_for_backward(*tape.stored)
        tape.share()
        return first.view_as(first), second.view_as(second)

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[None, Tensor, Tensor]:
        ctx.tape.load(ctx.position, ctx.saved_tensors)
        return None, grad_first, grad_second
