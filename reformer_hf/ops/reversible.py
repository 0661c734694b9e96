"""The reversible engine: residual streams whose earlier values are recomputed, bit for bit.

Two streams ``s_0, s_1``; step ``k`` adds ``f_k(s_{1 - k mod 2})`` to ``s_{k mod 2}``. The input of
every step can be recovered from its output, ``s_{k mod 2} - f_k(s_{1 - k mod 2})``, so training
keeps the two final streams instead of every intermediate one: memory does not grow with depth.
Source: RevNet (arXiv:1707.04585); Reformer, section 3 (arXiv:2001.04451).

**Exactly.** Floating-point sums round, so a stream recovered by subtraction is normally a little
off, and gradients are those of slightly different activations. Here streams are fp32 and every
``f_k`` is rounded to multiples of a grid ``g`` (a power of two) before it is added. Sums of
multiples of ``g`` below ``g * 2**24`` are exact in fp32; subtracting gives back the same bits. The
rounding is straight-through in the backward pass.

**How.** Every step is one autograd Function with the two streams, the step's other inputs and its
parameters as inputs. Nothing is saved but a handle on a :class:`_Tape`, which in the backward pass
carries the restored streams from step to step. Parameter gradients are *returned*, like those of
any other node, so that hooks (DDP's among them) fire as soon as a layer is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Integers up to 2**24 are exact in fp32, so sums of grid multiples are exact below grid * 2**24.
_EXACT_STEPS = float(1 << 24)


@dataclass(frozen=True)
class ReversibleStep:
    """One residual sub-layer ``f_k``.

    Attributes:
        function: ``f(x, *inputs)`` with ``x`` ``[B, N, d]``; must return ``[B, N, d]``, keep no
            reference to ``inputs``, and depend on nothing that changes before the backward pass.
        parameters: the parameters that ``function`` uses.
        inputs: further tensors that may need gradients (an encoder's output, say).
        chunk_size: if positive, ``function`` works position by position and is called on slices of
            that many positions, in the backward pass too.
    """

    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()
    chunk_size: int = 0

    def chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        """Slices of ``x`` along the sequence on which the function is called."""
        if self.chunk_size <= 0 or x.shape[1] <= self.chunk_size:
            return (x,)
        return x.split(self.chunk_size, dim=1)


def round_to_grid(x: Tensor, grid: float) -> Tensor:
    """The nearest multiple of ``grid`` (ties to even), in fp32 or fp64; the gradient is passed on.

    Args:
        x: any shape, floating point.
        grid: a power of two.
    """
    rounded: Tensor = _RoundToGrid.apply(x, grid)
    return rounded


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: float) -> Tensor:
        ctx.dtype = x.dtype
        return _widen(x).mul(1.0 / grid).round_().mul_(grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def _residual(x: Tensor, grid: float | None) -> Tensor:
    """What a step adds to its stream."""
    return x if grid is None else round_to_grid(x, grid)


@dataclass
class _Tape:
    """The streams of one forward pass on their way back.

    Attributes:
        position: number of steps whose effect the streams contain; ``None``: no streams.
        streams: the two streams at that position.
    """

    position: int | None = None
    streams: list[Tensor] = field(default_factory=list)

    def load(self, position: int, streams: Sequence[Tensor]) -> None:
        self.position, self.streams = position, [s.detach() for s in streams]

    def clear(self) -> None:
        self.position, self.streams = None, []


@dataclass(frozen=True)
class _Surroundings:
    """What a recomputation must find as the first computation did: random states and autocast."""

    device: torch.device
    cpu_state: Tensor
    device_state: Tensor | None
    autocast: tuple[bool, torch.dtype]
    cpu_autocast: tuple[bool, torch.dtype]

    @staticmethod
    def capture(device: torch.device) -> _Surroundings:
        on_cpu = device.type == "cpu"
        state = None if on_cpu else torch.get_device_module(device).get_rng_state(device)
        return _Surroundings(
            device,
            torch.get_rng_state(),
            state,
            (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)),
            (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        )

    @contextlib.contextmanager
    def autocast_uncached(self) -> Iterator[None]:
        """The same autocast, without its cache of cast weights.

        A weight that is cast while gradients are off would stay in the cache without a gradient and
        be handed to other users of the same weight.
        """
        with contextlib.ExitStack() as stack:
            kinds = {self.device.type: self.autocast, "cpu": self.cpu_autocast}
            for kind, (enabled, dtype) in kinds.items():
                stack.enter_context(
                    torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
                )
            yield

    @contextlib.contextmanager
    def replay(self) -> Iterator[None]:
        """Random states and autocast as captured; the present random states come back after."""
        on_cpu = self.device.type == "cpu"
        devices = [] if on_cpu else [self.device]
        kind = "cuda" if on_cpu else self.device.type
        with torch.random.fork_rng(devices, device_type=kind), self.autocast_uncached():
            torch.set_rng_state(self.cpu_state)
            if self.device_state is not None:
                torch.get_device_module(self.device).set_rng_state(self.device_state, self.device)
            yield


class _Coupling(torch.autograd.Function):
    """``target + f(source, *inputs)`` without saving either stream."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: _Tape,
        index: int,
        step: ReversibleStep,
        grid: float | None,
        source: Tensor,
        target: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.tape, ctx.index, ctx.grid = tape, index, grid
        num_inputs = len(step.inputs)
        inputs = tensors[:num_inputs]
        ctx.save_for_backward(*inputs)
        ctx.parameters = tensors[num_inputs:]
        ctx.step = ReversibleStep(step.function, (), (), step.chunk_size)
        ctx.surroundings = _Surroundings.capture(source.device)
        with ctx.surroundings.autocast_uncached():
            added = [_residual(step.function(x, *inputs), grid) for x in step.chunks(source)]
        return target + (added[0] if len(added) == 1 else torch.cat(added, dim=1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tape, index = ctx.tape, ctx.index
        if tape.position != index + 1:
            raise RuntimeError(
                f"step {index} of the reversible stack needs the streams after step {index}, but "
                f"the streams at hand are those of position {tape.position}; was a gradient hook "
                "or a backward pass run out of order?"
            )
        source, out = tape.streams[1 - index % 2], tape.streams[index % 2]
        need_source = ctx.needs_input_grad[4]
        need = ctx.needs_input_grad[6:]
        inputs = [
            x.detach().requires_grad_(n) for x, n in zip(ctx.saved_tensors, need, strict=False)
        ]
        tensors = [*inputs, *ctx.parameters]
        wanted = [t for t, n in zip(tensors, need, strict=True) if n]
        totals: list[Tensor | None] = [None] * len(wanted)
        grad_source = torch.empty_like(source) if need_source else None
        target = torch.empty_like(out)
        start = 0
        with ctx.surroundings.replay():
            for part in ctx.step.chunks(source):
                stop = start + part.shape[1]
                x = part.detach().requires_grad_(need_source)
                with torch.enable_grad():
                    added = ctx.step.function(x, *inputs)
                torch.sub(
                    out[:, start:stop],
                    _residual(added.detach(), ctx.grid),
                    out=target[:, start:stop],
                )
                if added.requires_grad:
                    grads = torch.autograd.grad(
                        added,
                        [x, *wanted] if need_source else wanted,
                        grad_out[:, start:stop].to(added.dtype),
                        allow_unused=True,
                    )
                    if grad_source is not None:
                        own, grads = grads[0], grads[1:]
                        grad_source[:, start:stop] = 0.0 if own is None else own
                    totals = [_accumulate(t, g) for t, g in zip(totals, grads, strict=True)]
                elif grad_source is not None:
                    grad_source[:, start:stop] = 0.0
                start = stop
        tape.streams[index % 2] = target
        tape.position = index
        if index == 0:
            tape.clear()
        results = iter(
            None if total is None else total.to(w.dtype)
            for total, w in zip(totals, wanted, strict=True)
        )
        return (
            None,
            None,
            None,
            None,
            grad_source,
            grad_out,
            *(next(results) if n else None for n in need),
        )


def _accumulate(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Sum over chunks, in fp32 at least."""
    if grad is None:
        return total
    return grad if total is None else _widen(total).add_(_widen(grad))


class _Anchor(torch.autograd.Function):
    """Passes the streams on, and puts them on the tape when the backward pass comes by."""

    @staticmethod
    def forward(
        ctx: Any, tape: _Tape, position: int, first: Tensor, second: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.tape, ctx.position = tape, position
        ctx.save_for_backward(first, second)
        return first.view_as(first), second.view_as(second)

    @staticmethod
    def backward(
        ctx: Any, grad_first: Tensor, grad_second: Tensor
    ) -> tuple[None, None, Tensor, Tensor]:
        ctx.tape.load(ctx.position, ctx.saved_tensors)
        return None, None, grad_first, grad_second


Checkpoint = Callable[..., Tensor]


class ResidualStreams:
    """The two streams of one forward pass.

    Reversible or not, the same sums are formed: with ``reversible=False``, or while gradients are
    off, through plain operations; else through the engine.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(8, 8)
        >>> step = ReversibleStep(layer, tuple(layer.parameters()))
        >>> streams = ResidualStreams(torch.randn(2, 5, 8), reversible=True, grid=2.0**-13)
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
        start = _residual(x, grid)
        self._streams = [start, start]
        self._grid = grid
        self._position = 0
        self._checkpoint = checkpoint
        self._tape = _Tape() if reversible and torch.is_grad_enabled() else None
        self._peak: Tensor | None = None

    def add(self, step: ReversibleStep) -> None:
        """Add ``f(other stream)`` to the stream whose turn it is."""
        index = self._position
        source, target = self._streams[1 - index % 2], self._streams[index % 2]
        if self._tape is not None:
            updated = _Coupling.apply(
                self._tape, index, step, self._grid, source, target, *step.inputs, *step.parameters
            )
        else:
            updated = self._add_plainly(step, source, target)
        self._streams[index % 2] = updated
        self._position += 1
        if self._tape is not None and self._grid is not None:
            peak = torch.linalg.vector_norm(updated.detach(), torch.inf)
            self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)

    def _add_plainly(self, step: ReversibleStep, source: Tensor, target: Tensor) -> Tensor:
        function = step.function
        if self._checkpoint is not None:
            checkpoint = self._checkpoint

            def function(*tensors: Tensor) -> Tensor:
                return checkpoint(step.function, *tensors)

        added = [_residual(function(x, *step.inputs), self._grid) for x in step.chunks(source)]
        return target + (added[0] if len(added) == 1 else torch.cat(added, dim=1))

    def read(self) -> tuple[Tensor, Tensor]:
        """The streams as they are now; gradients may flow into them.

        Each call keeps both streams for the backward pass, so read at the end, and in between only
        where intermediate states are asked for.
        """
        if self._tape is None:
            return self._streams[0], self._streams[1]
        self._streams = list(_Anchor.apply(self._tape, self._position, *self._streams))
        return self._streams[0], self._streams[1]

    def check_range(self) -> None:
        """Make sure that no sum so far was rounded (one device sync).

        Raises:
            OverflowError: a stream left the range in which sums on the grid are exact.
        """
        if self._peak is None or self._grid is None:
            return
        peak, limit = float(self._peak), self._grid * _EXACT_STEPS
        # Infinite and undefined values are a numerical failure that the loss shows by itself.
        if limit <= peak < float("inf"):
            raise OverflowError(
                f"a residual stream reached {peak:.4g}, but with residual_grid={self._grid} sums "
                f"are exact only below {limit:.4g}: lower the learning rate, raise `residual_grid` "
                "or set `exact_reversible=False`"
            )
