"""A step of the engine: one residual sub-layer, and what the forward pass may keep of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

# ``take(token, function, parameters)``: take the step here and now, with this function and these
# parameters, and return the stream that it changed.
Take = Callable[[Tensor, Callable[..., Tensor], Sequence[Tensor]], Tensor]

Surroundings = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class ReversibleStep:
    """One residual sub-layer ``f_k``.

    Attributes:
        function: ``f(x, *inputs)`` with ``x`` ``[B, N, d]``; must return ``[B, N, d]``, keep no
            reference to ``inputs``, and depend on nothing that changes before the backward pass but
            what ``note_state`` brings back.
        parameters: the parameters that ``function`` uses.
        inputs: further tensors that may need gradients (an encoder's output, say).
        chunk_size: if positive, ``function`` works position by position and is called on slices of
            at most that many positions, in the backward pass too.
        host: ``host(token, take)`` brings the parameters in and calls ``take`` (see ``Take``) once,
            with a 0-d tensor that depends on ``token``. What it passes stands in for ``function``
            and ``parameters``. The token's gradient comes after those of the parameters.
        note_state: called in the forward pass; what it returns makes the context in which
            ``function`` finds everything as it was then. By default nothing changes.
        draws: ``function`` draws random numbers, the same ones in the recomputation. Where it does
            not, other threads may draw some meanwhile.
        without_values: ``function`` for the backward pass where the earlier stream was kept: what
            it returns has the gradients of the function's result, its shape and dtype, but not its
            values, which nobody needs then. ``None``: ``function`` itself is called.
    """

    function: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...] = ()
    chunk_size: int = 0
    host: Callable[[Tensor, Take], object] | None = None
    without_values: Callable[..., Tensor] | None = None
    note_state: Callable[[], Surroundings] = lambda: contextlib.nullcontext
    draws: bool = False

    def spans(self, length: int) -> list[slice]:
        """The slices of ``length`` positions on which the function is called."""
        size = self.chunk_size if self.chunk_size > 0 else length
        return [slice(i, min(i + size, length)) for i in range(0, length, max(1, size))]


@dataclass(frozen=True)
class Keep:
    """What of a step is kept for the backward pass; by default nothing.

    Attributes:
        stream: the stream before the step, so that not its value but only its gradients are
            needed once more.
        results: what operations keep of their results (:mod:`reformer_hf.ops.kept_results`).
        activations: all that autograd keeps, so that nothing is computed again. From the first such
            step on, no later step is recomputed either.
    """

    stream: bool = False
    results: bool = False
    activations: bool = False


NOTHING = Keep()
