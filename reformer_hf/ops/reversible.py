"""The reversible engine: residual streams whose earlier values are recomputed, bit for bit.

Two streams ``s_0, s_1``; step ``k`` adds ``f_k(s_{1 - k mod 2})`` to ``s_{k mod 2}``. The input of
every step can be recovered from its output, ``s_{k mod 2} - f_k(s_{1 - k mod 2})``, so training
keeps the two final streams instead of every intermediate one: memory does not grow with depth.
Source: RevNet (arXiv:1707.04585); Reformer, section 3 (arXiv:2001.04451).

**Exactly.** Floating-point sums round, so a stream recovered by subtraction is normally a little
off, and gradients are those of slightly different activations. Here a stream is *stored* as whole
numbers of steps of a grid ``g`` (a power of two) in int32, every ``f_k`` is rounded to steps before
it is added, and integer sums are exact: subtracting gives back the same bits. What the layers
*read* is ``g * stored`` in fp32. The rounding is straight-through in the backward pass.

Why integers: sums of grid multiples in fp32 are exact too, but only below ``2**24 g``, so a grid
that leaves room for large activations is coarse (``2**-13`` for 2,048), and the last-bit noise of
matrix products then flips values by visible amounts. Thirty-one bits allow ``2**-20`` for the same
range and the same memory.

**How.** Every step is one autograd Function with the two streams, the step's other inputs and its
parameters as inputs. Nothing is saved but a handle on a :class:`_Tape`, which in the backward pass
carries the restored streams from step to step, and what the caller chose to :class:`Keep`.
Parameter gradients are *returned*, like those of any other node, so that hooks (DDP's among them)
fire as soon as a layer is done. A module whose parameters exist only while it is called (FSDP2
gathers them then) can be the *host* of its step: the Function is applied within a call of the
module, so that the module's own hooks bring the parameters before the step and before its backward
pass, and collect the gradients after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.recall import Recall
from reformer_hf.ops.triton_support import usable_on

# A stream may use three quarters of the range of int32 and a single step one quarter, so that no
# sum wraps around before it is noticed.
_RANGE = float(1 << 31)
_STREAM_SHARE, _STEP_SHARE = 0.75, 0.25
# How far apart the restored streams may end: far beyond rounding, far below a dropped element.
_RESTORED_WITHIN = 2.0**-10
# Elements of a stream that are updated together (1 MiB of fp32). An accelerator gets all at once.
_BLOCK_ELEMENTS = 1 << 18

# Numbers of one kind that a sliced function should keep at most on a CPU (16 MiB of fp32): fresh
# memory above 32 MiB comes from the operating system every time, which clears it page by page.
_SLICE_ELEMENTS = 1 << 22

# ``take(token, function, parameters)``: take the step here and now, with this function and these
# parameters, and return the stream that it changed.
Take = Callable[[Tensor, Callable[..., Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class ReversibleStep:
    """One residual sub-layer ``f_k``.

    Attributes:
        function: ``f(x, *inputs)`` with ``x`` ``[B, N, d]``; must return ``[B, N, d]``, keep no
            reference to ``inputs``, and depend on nothing that changes before the backward pass.
        parameters: the parameters that ``function`` uses.
        inputs: further tensors that may need gradients (an encoder's output, say).
        chunk_size: if positive, ``function`` works position by position and is called on slices of
            at most that many positions, in the backward pass too.
        host: ``host(token, take)`` brings the parameters in and calls ``take`` (see ``Take``) once,
            with a 0-d tensor that depends on ``token``. What it passes stands in for ``function``
            and ``parameters``. The token's gradient comes after those of the parameters.
        width: numbers that the function keeps per position; a CPU gets slices in proportion.
        saved: bytes per position that autograd would keep of the function; 0: nobody knows.
        for_gradients: ``function`` without its last product: what it returns has the gradients of
            the function's result, its shape and dtype, but not its values, which nobody needs
            where the earlier stream was kept. ``None``: only the function itself is there.
        spared: multiplications per position that ``for_gradients`` does without.
        results: bytes per position of what the function remembers (see
            :func:`~reformer_hf.ops.recall.remember`) if it is told to.
    """

    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()
    chunk_size: int = 0
    host: Callable[[Tensor, Take], object] | None = None
    width: int = 0
    saved: int = 0
    for_gradients: Callable[..., Tensor] | None = None
    spared: int = 0
    results: int = 0

    def spans(self, x: Tensor) -> list[slice]:
        """Positions of the slices of ``x`` ``[B, N, d]`` on which the function is called."""
        batch, length, _ = x.shape
        size = length
        if self.chunk_size > 0:
            size = min(length, self.chunk_size)
            if self.width > 0 and x.device.type == "cpu":
                size = min(size, max(1, _SLICE_ELEMENTS // max(1, batch * self.width)))
        return [slice(i, min(i + size, length)) for i in range(0, length, max(1, size))]

    def chunks(self, x: Tensor) -> list[Tensor]:
        """The slices themselves."""
        return [x[:, span] for span in self.spans(x)]


@dataclass(frozen=True)
class Keep:
    """What of a step is kept for the backward pass; by default nothing.

    Attributes:
        stream: the stream before the step, so that not its value but only its gradients are
            needed once more.
        results: what its function remembers.
    """

    stream: bool = False
    results: bool = False


_NOTHING = Keep()


def _widen(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def to_steps(x: Tensor, grid: float | None) -> Tensor:
    """What is stored for a float tensor: the nearest whole number of grid steps (ties to even).

    Args:
        x: any shape, floating point.
        grid: a power of two, or ``None``: the numbers themselves are stored.

    Returns:
        int32 (int64 for fp64 input), or ``x`` in its own dtype without a grid.
    """
    if grid is None:
        return x
    stored = torch.int64 if x.dtype == torch.float64 else torch.int32
    return _widen(x).mul(1.0 / grid).round_().to(stored)


def from_steps(stored: Tensor, grid: float | Tensor | None) -> Tensor:
    """The inverse of :func:`to_steps`: ``grid * stored`` in fp32 (fp64 for int64)."""
    if grid is None:
        return stored
    if not isinstance(grid, Tensor):
        grid = torch.full((), grid, dtype=_float_of(stored), device=stored.device)
    # Times a tensor without dimensions, whole numbers become floats of its dtype in the same pass.
    return stored * grid


def _float_of(stored: Tensor) -> torch.dtype:
    """The dtype in which a stored stream is read."""
    return torch.float64 if stored.dtype == torch.int64 else torch.float32


class _Gauge:
    """Watches the range of the streams of one forward pass, without waiting for the device.

    Attributes:
        peak: 0-d tensor, the largest share of its allowance that a stream or a step has used.
    """

    def __init__(self, grid: float) -> None:
        self.grid = grid
        self.peak: Tensor | None = None

    def factor(self, stored: Tensor, steps: Tensor, share: float = _STEP_SHARE) -> Tensor:
        """The grid as a 0-d tensor, or NaN if the sum cannot be trusted.

        Infinite and undefined residuals, which integers cannot represent, become NaN this way too.

        Args:
            stored: a stored stream after a step.
            steps: what the step added, in steps of the grid but still as floats.
            share: of the range, that it may use.
        """
        wide = steps.dtype
        used = torch.maximum(
            _largest(stored).to(wide) / (_STREAM_SHARE * _RANGE), _largest(steps) / (share * _RANGE)
        )
        self.note(used)
        return torch.where(used < 1.0, self.grid, torch.nan).to(wide)

    def note(self, used: Tensor) -> None:
        """Take down a share of the range, a 0-d tensor."""
        # fmax passes over NaN: what a stream turns into must not hide how it came to that.
        self.peak = used if self.peak is None else torch.fmax(self.peak, used)

    def check_restored(self, first: Tensor, second: Tensor) -> None:
        """Make sure that the streams are again what both began as, the same embedding.

        Only on the CPU, where looking does not wait for a device, and where the streams kept their
        range (else the loss is undefined anyway). A few steps of the grid are left to rounding.

        Raises:
            RuntimeError: they are not, so that the gradients are those of other activations.
        """
        if first.device.type != "cpu" or torch.equal(first, second):
            return
        off = float((first.double() - second.double()).abs().amax()) * self.grid
        if self.peak is not None and float(self.peak) < 1.0 and off > _RESTORED_WITHIN:
            raise RuntimeError(
                "the backward pass must compute what the forward pass computed, but its streams "
                f"end {off:.3g} apart: were weights changed in between, or random numbers drawn by "
                "another thread (dropout in several threads needs reversible=False)?"
            )


def _largest(x: Tensor) -> Tensor:
    """``max |x|`` (a norm would take twenty times as long on a CPU); NaN where there is any."""
    lowest, highest = x.aminmax()
    return torch.maximum(-lowest, highest)


@dataclass
class _Tape:
    """The stored streams of one forward pass, there and back.

    Attributes:
        position: number of steps whose effect the streams contain; ``None``: no streams.
        stored: the two streams at that position, as :func:`to_steps` stores them.
        owned: whether nobody else holds a stream, so that it may be changed in place.
    """

    position: int | None = None
    stored: list[Tensor] = field(default_factory=list)
    owned: list[bool] = field(default_factory=lambda: [False, False])

    def load(self, position: int, stored: Sequence[Tensor]) -> None:
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
        self.position, self.stored = None, []


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
    """``target + f(source, *inputs)`` without saving ``source``, and ``target`` only if told to."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: _Tape,
        gauge: _Gauge | None,
        step: ReversibleStep,
        keep: Keep,
        source: Tensor,
        target: Tensor,
        token: Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        index = tape.position or 0
        ctx.tape, ctx.index, ctx.gauge = tape, index, gauge
        ctx.grid = None if gauge is None else gauge.grid
        num_inputs = ctx.num_inputs = len(step.inputs)
        inputs = tensors[:num_inputs]
        kept = tape.keep(index) if keep.stream else None
        ctx.recall = Recall() if keep.results else None
        ctx.parameters = tensors[num_inputs:]
        ctx.versions = [p._version for p in ctx.parameters] if keep != _NOTHING else []
        ctx.step = replace(step, parameters=(), inputs=(), host=None)
        ctx.surroundings = _Surroundings.capture(source.device)
        recording = ctx.recall.record() if keep.results else contextlib.nullcontext(())
        with ctx.surroundings.autocast_uncached(), recording as results:
            if gauge is None:
                added = join([step.function(x, *inputs) for x in step.chunks(source)])
                out = tape.stored[index % 2] + added
                # With its history, the tape would keep itself alive.
                tape.stored[index % 2] = out.detach()
            else:
                stored, total = tape.stored[index % 2], tape.target(index)
                out = torch.empty_like(stored, dtype=_float_of(stored))
                for span in step.spans(source):
                    added = step.function(source[:, span], *inputs)
                    _add(stored[:, span], added, gauge, total[:, span], out[:, span])
                tape.replace(index, total)
        ctx.save_for_backward(kept, *inputs, *results)
        tape.position = index + 1
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tape, index, grid = ctx.tape, ctx.index, ctx.grid
        if tape.position != index + 1:
            raise RuntimeError(
                f"step {index} of the reversible stack needs the streams after step {index}, but "
                f"the streams at hand are those of position {tape.position}; was a gradient hook "
                "or a backward pass run out of order?"
            )
        source, out = tape.stored[1 - index % 2], tape.stored[index % 2]
        need_source = ctx.needs_input_grad[4]
        need = ctx.needs_input_grad[7:]
        kept, *saved = ctx.saved_tensors
        inputs = [
            x.detach().requires_grad_(n)
            for x, n in zip(saved[: ctx.num_inputs], need, strict=False)
        ]
        results = saved[ctx.num_inputs :]
        if (kept is not None or results) and [p._version for p in ctx.parameters] != ctx.versions:
            raise RuntimeError(
                f"a weight of step {index} of the reversible stack was changed in place between "
                "the forward and the backward pass, which needs the one that the forward pass used"
            )
        tensors = [*inputs, *ctx.parameters]
        wanted = [t for t, n in zip(tensors, need, strict=True) if n]
        totals: list[Tensor | None] = [None] * len(wanted)
        grad_source = torch.empty_like(grad_out) if need_source else None
        function, target = ctx.step.function, kept
        if kept is not None:
            function = ctx.step.for_gradients or function
        else:
            target = torch.empty_like(out) if grid is None else tape.target(index)
        recalling = contextlib.nullcontext() if ctx.recall is None else ctx.recall.replay(results)
        with ctx.surroundings.replay(), recalling:
            for span in ctx.step.spans(source):
                x = from_steps(source[:, span], grid).detach().requires_grad_(need_source)
                with torch.enable_grad():
                    added = function(x, *inputs)
                if kept is None:
                    _subtract(out[:, span], added.detach(), grid, target[:, span])
                grads: Sequence[Tensor | None] = [None] * (len(wanted) + need_source)
                if added.requires_grad:
                    grads = torch.autograd.grad(
                        added,
                        [x, *wanted] if need_source else wanted,
                        grad_out[:, span].to(added.dtype),
                        allow_unused=True,
                    )
                if grad_source is not None:
                    own, grads = grads[0], grads[1:]
                    if own is not None and own.shape == grad_source.shape:
                        grad_source = own.to(grad_source.dtype)
                    else:
                        grad_source[:, span] = 0.0 if own is None else own
                totals = [_accumulate(t, g) for t, g in zip(totals, grads, strict=True)]
        tape.replace(index, target, owned=kept is None)
        tape.position = index
        if index == 0:
            if ctx.gauge is not None:
                ctx.gauge.check_restored(*tape.stored)
            tape.clear()
        results = iter(
            None if total is None else total.to(w.dtype)
            for total, w in zip(totals, wanted, strict=True)
        )
        return (
            *(None, None, None, None),
            grad_source,
            grad_out,
            grad_out.new_zeros(()) if ctx.needs_input_grad[6] else None,
            *(next(results) if n else None for n in need),
        )


def join(chunks: Sequence[Tensor]) -> Tensor:
    """Chunks of a sequence as one tensor ``[B, N, d]``."""
    return chunks[0] if len(chunks) == 1 else torch.cat(list(chunks), dim=1)


def _blocks(x: Tensor) -> Iterator[slice]:
    """Ranges of positions of ``[B, N, d]``, so small that repeated passes over one are cheap."""
    size = x.shape[1]
    if x.device.type == "cpu":
        size = max(1, _BLOCK_ELEMENTS // max(1, x[:, :1].numel()))
    for start in range(0, x.shape[1], size):
        yield slice(start, start + size)


def _add(stored: Tensor, added: Tensor, gauge: _Gauge, total: Tensor, out: Tensor) -> None:
    """Write the stored stream after a step to ``total`` and what is read of it to ``out``.

    ``total`` may be ``stored`` itself.
    """
    if usable_on(stored.device):
        from reformer_hf.ops import triton_residual

        if triton_residual.fits(stored, added):
            limits = _STREAM_SHARE * _RANGE, _STEP_SHARE * _RANGE
            gauge.note(triton_residual.add(stored, added, total, out, gauge.grid, *limits))
            return
    for block in _blocks(stored):
        steps = _widen(added[:, block]).mul(1.0 / gauge.grid).round_()
        torch.add(stored[:, block], steps.to(stored.dtype), out=total[:, block])
        torch.mul(total[:, block], gauge.factor(total[:, block], steps), out=out[:, block])


def _subtract(stored: Tensor, added: Tensor, grid: float | None, total: Tensor) -> None:
    """Write the stored stream before a step to ``total``, which may be ``stored`` itself."""
    if grid is not None and usable_on(stored.device):
        from reformer_hf.ops import triton_residual

        if triton_residual.fits(stored, added):
            triton_residual.subtract(stored, added, total, grid, _STEP_SHARE * _RANGE)
            return
    for block in _blocks(stored):
        torch.sub(stored[:, block], to_steps(added[:, block], grid), out=total[:, block])


class _ExactAdd(torch.autograd.Function):
    """``target + added`` through the stored stream; gradients pass straight to both."""

    @staticmethod
    def compute(
        stored: Tensor, target: Tensor, added: Tensor, gauge: _Gauge
    ) -> tuple[Tensor, Tensor]:
        del target
        total, out = torch.empty_like(stored), torch.empty_like(stored, dtype=_float_of(stored))
        _add(stored, added, gauge, total, out)
        return total, out

    @staticmethod
    def forward(
        ctx: Any, stored: Tensor, target: Tensor, added: Tensor, gauge: _Gauge
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = added.dtype
        total, out = _ExactAdd.compute(stored, target, added, gauge)
        ctx.mark_non_differentiable(total)
        return total, out

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, grad, grad.to(ctx.dtype), None


class _EnterGrid(torch.autograd.Function):
    """``from_steps(to_steps(x))``; the gradient passes straight through."""

    @staticmethod
    def compute(x: Tensor, gauge: _Gauge) -> tuple[Tensor, Tensor]:
        stored = to_steps(x, gauge.grid)
        factor = gauge.factor(stored, _widen(x).mul(1.0 / gauge.grid), _STREAM_SHARE)
        return stored, from_steps(stored, factor)

    @staticmethod
    def forward(ctx: Any, x: Tensor, gauge: _Gauge) -> tuple[Tensor, Tensor]:
        ctx.dtype = x.dtype
        stored, out = _EnterGrid.compute(x, gauge)
        ctx.mark_non_differentiable(stored)
        return stored, out

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def _accumulate(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Sum over chunks, in fp32 at least."""
    if grad is None:
        return total
    return grad if total is None else _widen(total).add_(_widen(grad))


class _Anchor(torch.autograd.Function):
    """Passes the streams on, and puts them on the tape when the backward pass comes by."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        ctx.tape, ctx.position = tape, tape.position
        ctx.save_for_backward(*tape.stored)
        tape.share()
        return first.view_as(first), second.view_as(second)

    @staticmethod
    def backward(ctx: Any, grad_first: Tensor, grad_second: Tensor) -> tuple[None, Tensor, Tensor]:
        ctx.tape.load(ctx.position, ctx.saved_tensors)
        return None, grad_first, grad_second


Checkpoint = Callable[..., Tensor]


@torch.compiler.disable
def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Compilers stay out of the engine, and of the sub-layers that it calls.

    What a graph computes in the forward pass would not be, bit for bit, what the backward pass
    restores.
    """
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
        self._gauge = None if grid is None else _Gauge(grid)
        if self._gauge is None:
            stored, start = x.detach(), x
        elif torch.is_grad_enabled():
            stored, start = _apply(_EnterGrid, x, self._gauge)
        else:
            stored, start = _EnterGrid.compute(x, self._gauge)
        self.start = start
        self._streams = [start, start]
        self._stored = [stored, stored]
        self._position = 0
        self._checkpoint = checkpoint
        self._tape: _Tape | None = None
        if reversible and torch.is_grad_enabled():
            self._tape = _Tape(0, self._stored)

    def add(self, step: ReversibleStep, keep: Keep = _NOTHING) -> None:
        """Add ``f(other stream)`` to the stream whose turn it is.

        Args:
            step: ``f``.
            keep: what is kept so that the backward pass computes less.
        """
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
                    _apply(_ExactAdd, *arguments)
                    if torch.is_grad_enabled()
                    else _ExactAdd.compute(*arguments)
                )
        self._position += 1

    def _couple(
        self, tape: _Tape, step: ReversibleStep, keep: Keep, source: Tensor, target: Tensor
    ) -> Tensor:
        taken: list[Tensor] = []

        def take(
            token: Tensor | None, function: Callable[..., Tensor], parameters: Sequence[Tensor]
        ) -> Tensor:
            tensors = (source, target, token, *step.inputs, *parameters)
            here = replace(step, function=function)
            taken.append(_apply(_Coupling, tape, self._gauge, here, keep, *tensors))
            return taken[0]

        if step.host is None:
            return take(None, step.function, step.parameters)
        # What the host returns may be a copy in another dtype; hooks are on what was taken.
        step.host(torch.zeros((), device=source.device, requires_grad=True), take)
        return taken[0]

    def _call(self, step: ReversibleStep, source: Tensor) -> Tensor:
        if self._checkpoint is None:
            return join([step.function(x, *step.inputs) for x in step.chunks(source)])
        checkpoint = self._checkpoint
        return join([checkpoint(step.function, x, *step.inputs) for x in step.chunks(source)])

    def keep_activations(self) -> None:
        """Of the steps from here on, keep what autograd saves, and recompute nothing.

        Numbers and gradients are the same; it takes less time and more memory.
        """
        if self._tape is not None and self._position > 0:
            self._streams = list(self.read())
        self._stored, self._tape = list(self._stored), None

    def read(self) -> tuple[Tensor, Tensor]:
        """The streams as they are now; gradients may flow into them.

        Each call keeps both streams for the backward pass, so read at the end, and in between only
        where intermediate states are asked for.
        """
        if self._tape is None:
            return self._streams[0], self._streams[1]
        self._streams = list(_apply(_Anchor, self._tape, *self._streams))
        return self._streams[0], self._streams[1]

    def check_range(self) -> None:
        """Make sure that no stream so far left its range (one device sync).

        Raises:
            OverflowError: a sum was too large to be stored; what is read of it is NaN.
        """
        if self._gauge is None or self._gauge.peak is None:
            return
        peak, grid = float(self._gauge.peak), self._gauge.grid
        # Infinite and undefined values are a numerical failure that the loss shows by itself.
        if 1.0 <= peak < float("inf"):
            raise OverflowError(
                f"a residual stream or step reached {peak:.3g} times what residual_grid={grid} "
                f"allows ({_STREAM_SHARE * _RANGE * grid:.4g} for a stream, "
                f"{_STEP_SHARE * _RANGE * grid:.4g} for one step): lower the learning rate, raise "
                "`residual_grid` or set `exact_reversible=False`"
            )
