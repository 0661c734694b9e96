"""One step of the engine, forward and backward, as an autograd Function.

Every step takes the two streams, the step's other inputs and its parameters as inputs. Nothing is
saved but a handle on the :class:`~reformer_hf.ops.reversible.tape.StreamTape`, which carries the
restored streams from step to step in the backward pass, and what the caller chose to keep.
Parameter gradients are *returned*, like those of any other node, so that hooks (DDP's among them)
fire as soon as a layer is done. A module whose parameters exist only while it is called (FSDP2
gathers them then) can be the *host* of its step: the Function is applied within a call of the
module, so that the module's own hooks bring the parameters before the step and before its backward
pass, and collect the gradients after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.first_order import first_order_only
from reformer_hf.ops.kept_results import KeptResults
from reformer_hf.ops.precision import widen
from reformer_hf.ops.reversible.grid import float_of, from_steps
from reformer_hf.ops.reversible.range_gauge import RangeGauge
from reformer_hf.ops.reversible.replay_state import ReplayState, fingerprint
from reformer_hf.ops.reversible.residual_sums import add, subtract
from reformer_hf.ops.reversible.step import Keep, ReversibleStep
from reformer_hf.ops.reversible.tape import StreamTape

# Places of the source, of the token, and of the first input among the arguments of the Function.
_SOURCE, _TOKEN, _INPUTS = 4, 6, 7


class Coupling(torch.autograd.Function):
    """``target + f(source, *inputs)`` without saving ``source``, and ``target`` only if told to."""

    @staticmethod
    def forward(
        ctx: Any,
        tape: StreamTape,
        gauge: RangeGauge | None,
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
        inputs, ctx.parameters = tensors[:num_inputs], tensors[num_inputs:]
        kept_stream = tape.keep(index) if keep.stream else None
        # The weights of a host are gathered anew for the backward pass.
        ctx.versions = [p._version for p in ctx.parameters] if step.host is None else None
        ctx.step = replace(step, parameters=(), inputs=(), host=None)
        ctx.state, ctx.as_it_was = ReplayState.capture(source.device), step.note_state()
        ctx.results = KeptResults() if keep.results else None
        recording = ctx.results.record() if ctx.results else contextlib.nullcontext(())
        with ctx.state.uncached(), recording as results:
            if gauge is None:
                added = join([step.function(source[:, s], *inputs) for s in _spans(step, source)])
                out = tape.stored[index % 2] + added
                # With its history, the tape would keep itself alive.
                tape.stored[index % 2] = out.detach()
            else:
                stored, total = tape.stored[index % 2], tape.target(index)
                out = torch.empty_like(stored, dtype=float_of(stored))
                for span in _spans(step, source):
                    added = step.function(source[:, span], *inputs)
                    add(stored[:, span], added, gauge, total[:, span], out[:, span])
                tape.replace(index, total)
        ctx.drawn = fingerprint(source.device) if step.draws else None
        ctx.save_for_backward(kept_stream, *inputs, *results)
        tape.position = index + 1
        return out

    @staticmethod
    @first_order_only("set `config.reversible=False`")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tape, index, grid, step = ctx.tape, ctx.index, ctx.grid, ctx.step
        _check_position(tape, index)
        need_source, need = ctx.needs_input_grad[_SOURCE], ctx.needs_input_grad[_INPUTS:]
        kept_stream, *saved = ctx.saved_tensors
        inputs = [
            x.detach().requires_grad_(n)
            for x, n in zip(saved[: ctx.num_inputs], need, strict=False)
        ]
        results = saved[ctx.num_inputs :]
        source, out = tape.stored[1 - index % 2], tape.stored[index % 2]
        if kept_stream is not None:
            function, target = step.without_values or step.function, kept_stream
        else:
            function = step.function
            target = torch.empty_like(out) if grid is None else tape.target(index)

        tensors = [*inputs, *ctx.parameters]
        wanted = [t for t, n in zip(tensors, need, strict=True) if n]
        totals: list[Tensor | None] = [None] * len(wanted)
        grad_source = torch.empty_like(grad_out) if need_source else None
        replaying = ctx.results.replay(results) if ctx.results else contextlib.nullcontext()
        with ctx.state.replay(), replaying, ctx.as_it_was(), _requiring_gradients(wanted):
            _check_versions(ctx.parameters, ctx.versions, index)
            for span in _spans(step, source):
                x = from_steps(source[:, span], grid).detach().requires_grad_(need_source)
                with torch.enable_grad():
                    added = function(x, *inputs)
                if kept_stream is None:
                    subtract(out[:, span], added.detach(), grid, target[:, span])
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
            if ctx.drawn is not None:
                ctx.state.check_drawn(ctx.drawn, index)
        tape.replace(index, target, owned=kept_stream is None)
        tape.position = index
        if index == 0:
            if ctx.gauge is not None:
                ctx.gauge.check_restored(*tape.stored)
            tape.clear()
        gradients = iter(
            None if total is None else total.to(w.dtype)
            for total, w in zip(totals, wanted, strict=True)
        )
        return (
            *(None, None, None, None),
            grad_source,
            grad_out,
            grad_out.new_zeros(()) if ctx.needs_input_grad[_TOKEN] else None,
            *(next(gradients) if n else None for n in need),
        )


@contextlib.contextmanager
def _requiring_gradients(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Weights that were frozen since the forward pass take part in what it recorded."""
    frozen = [t for t in tensors if not t.requires_grad]
    for t in frozen:
        t.requires_grad_(True)
    try:
        yield
    finally:
        for t in frozen:
            t.requires_grad_(False)


def _spans(step: ReversibleStep, x: Tensor) -> list[slice]:
    return step.spans(x.shape[1])


def _check_position(tape: StreamTape, index: int) -> None:
    if tape.position != index + 1:
        raise RuntimeError(
            f"step {index} of the reversible stack needs the streams after step {index}, but "
            f"the streams at hand are those of position {tape.position}; was a gradient hook "
            "or a backward pass run out of order?"
        )


def _check_versions(
    parameters: Sequence[Tensor], versions: Sequence[int] | None, index: int
) -> None:
    for parameter, version in zip(parameters, versions or (), strict=False):
        if parameter._version != version:
            raise RuntimeError(
                f"a weight {list(parameter.shape)} of step {index} of the reversible stack was "
                "changed in place between the forward and the backward pass, which must compute "
                "what the forward pass computed"
            )


def _accumulate(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Sum over slices, in fp32 at least."""
    if grad is None:
        return total
    return grad if total is None else widen(total).add_(widen(grad))


def join(slices: Sequence[Tensor]) -> Tensor:
    """Slices of a sequence as one tensor ``[B, N, d]``."""
    return slices[0] if len(slices) == 1 else torch.cat(list(slices), dim=1)
