"""The two residual streams of one forward pass, as a stack of layers uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.first_order import refuse_transforms
from reformer_hf.ops.reversible.coupling import Coupling, join
from reformer_hf.ops.reversible.range_gauge import RangeGauge
from reformer_hf.ops.reversible.residual_sums import EnterGrid, ExactAdd
from reformer_hf.ops.reversible.step import NOTHING, Keep, ReversibleStep
from reformer_hf.ops.reversible.tape import Anchor, StreamTape

Checkpoint = Callable[..., Tensor]


@torch.compiler.disable
def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Compilers stay out of the engine, and of the sub-layers that it calls.

    What a graph computes in the forward pass would not be, bit for bit, what the backward pass
    restores.
    """
    refuse_transforms("set `config.reversible=False` and `config.exact_reversible=False`")
    return function.apply(*arguments)


class ResidualStreams:
    """The two streams of one forward pass.

    Reversible or not, the same sums are formed: with ``reversible=False``, or while gradients are
    off, through plain operations; else through the engine.

    Attributes:
        start: ``[B, N, d]``, what both streams start as.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(8, 8)
        >>> step = ReversibleStep(layer, tuple(layer.parameters()))
        >>> streams = ResidualStreams(torch.randn(2, 5, 8), reversible=True, grid=2.0**-20)
        >>> streams.add(step)
        >>> streams.add(step)
        >>> first, second = streams.read()
        >>> (first + second).sum().backward()
        >>> layer.weight.grad.shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        x: Tensor,
        *,
        reversible: bool,
        grid: float | None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Both streams start as ``x``.

        Args:
            x: ``[B, N, d]``.
            reversible: recompute streams in the backward pass instead of keeping them.
            grid: round everything that enters a stream to multiples of this power of two;
                ``None``: plain sums (then the recomputed streams are approximate).
            checkpoint: ``checkpoint(function, *tensors)`` for gradient checkpointing of the plain
                path; the reversible path has no use for it.
        """
        self._gauge = None if grid is None else RangeGauge(grid)
        if self._gauge is None:
            stored, start = x.detach(), x
        elif torch.is_grad_enabled():
            stored, start = _apply(EnterGrid, x, self._gauge)
        else:
            stored, start = EnterGrid.compute(x, self._gauge)
        self.start = start
        self._streams = [start, start]
        self._stored = [stored, stored]
        self._position = 0
        self._checkpoint = checkpoint
        self._tape: StreamTape | None = None
        if reversible and torch.is_grad_enabled():
            self._tape = StreamTape(0, self._stored)

    @property
    def recomputing(self) -> bool:
        """Whether the backward pass will compute steps again, unless more of them is kept."""
        return self._tape is not None

    def add(self, step: ReversibleStep, keep: Keep = NOTHING) -> None:
        """Add ``f(other stream)`` to the stream whose turn it is.

        Args:
            step: ``f``.
            keep: what is kept so that the backward pass computes less.
        """
        if keep.activations and self._tape is not None:
            self._leave_tape()
        turn = self._position % 2
        source, target = self._streams[1 - turn], self._streams[turn]
        if self._tape is not None:
            self._streams[turn] = self._couple(self._tape, step, keep, source, target)
        else:
            added = self._call(step, source)
            if self._gauge is None:
                self._streams[turn] = target + added
            else:
                arguments = (self._stored[turn], target, added, self._gauge)
                self._stored[turn], self._streams[turn] = (
                    _apply(ExactAdd, *arguments)
                    if torch.is_grad_enabled()
                    else ExactAdd.compute(*arguments)
                )
        self._position += 1

    def _couple(
        self, tape: StreamTape, step: ReversibleStep, keep: Keep, source: Tensor, target: Tensor
    ) -> Tensor:
        taken: list[Tensor] = []

        def take(
            token: Tensor | None, function: Callable[..., Tensor], parameters: Sequence[Tensor]
        ) -> Tensor:
            tensors = (source, target, token, *step.inputs, *parameters)
            here = replace(step, function=function)
            taken.append(_apply(Coupling, tape, self._gauge, here, keep, *tensors))
            return taken[0]

        if step.host is None:
            return take(None, step.function, step.parameters)
        # What the host returns may be a copy in another dtype; hooks are on what was taken.
        step.host(torch.zeros((), device=source.device, requires_grad=True), take)
        return taken[0]

    def _call(self, step: ReversibleStep, source: Tensor) -> Tensor:
        slices = [source[:, span] for span in step.spans(source.shape[1])]
        if self._checkpoint is None:
            return join([step.function(x, *step.inputs) for x in slices])
        checkpoint = self._checkpoint
        return join([checkpoint(step.function, x, *step.inputs) for x in slices])

    def _leave_tape(self) -> None:
        """Of the steps from here on, keep what autograd saves, and recompute nothing.

        Numbers and gradients are the same; it takes less time and more memory.
        """
        if self._position > 0:
            self._streams = list(self.read())
        self._stored, self._tape = list(self._stored), None

    def replace_merged(self, merged: Tensor, concat: bool) -> None:
        """Go on with streams that merge to another tensor, through which all gradients pass.

        With ``m`` the mean of the streams and ``d`` half their difference, they become ``m' + d``
        and ``m' - d``: where ``m' = m`` the streams and their gradients are what they were, and the
        gradient of ``m'`` is that of both. What comes is not recomputed.

        Args:
            merged: ``[B, N, d]``, in the place of the mean; or ``[B, N, 2 d]``, in that of both.
            concat: the latter.
        """
        if self._tape is not None:
            self._leave_tape()
        first, second = self._streams
        half = (first - second) * 0.5
        parts = merged.chunk(2, dim=-1) if concat else (merged + half, merged - half)
        for turn, part in enumerate(parts):
            stream, moved = self._streams[turn], (part - self._streams[turn]).detach()
            if self._gauge is None:
                moved_stream = stream.detach() + moved
            else:
                arguments = (self._stored[turn], stream, moved, self._gauge)
                self._stored[turn], moved_stream = ExactAdd.compute(*arguments)
            self._streams[turn] = moved_stream.detach() + (part - part.detach())

    def read(self) -> tuple[Tensor, Tensor]:
        """The streams as they are now; gradients may flow into them.

        Each call keeps both streams for the backward pass, so read at the end, and in between only
        where intermediate states are asked for.
        """
        if self._tape is None:
            return self._streams[0], self._streams[1]
        self._streams = list(_apply(Anchor, self._tape, *self._streams))
        return self._streams[0], self._streams[1]

    def check_range(self) -> None:
        """Make sure that no stream so far left its range (one device sync).

        Raises:
            OverflowError: a sum was too large to be stored; what is read of it is NaN.
        """
        if self._gauge is not None:
            self._gauge.check()
