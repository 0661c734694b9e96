"""Operations whose backward pass is written by hand: first derivatives in reverse mode, no others.

What such an operation cannot do, it refuses with the setting that can, in the place of torch's own
message, which speaks of the operation's inside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

_Gradients = tuple[Tensor | None, ...]


def refused(what: str, advice: str) -> Callable[..., NoReturn]:
    """A function that always raises: for the ``jvp`` or ``vmap`` of an autograd function.

    Args:
        what: what was asked for, in the plural, e.g. ``"forward-mode derivatives"``.
        advice: what to do instead, e.g. ``"use `reversible=False`"``.
    """

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"{what} do not pass through this operation; {advice}")

    return refuse


class _Refusal(torch.autograd.Function):
    """The first ``count`` of some tensors, until somebody differentiates that."""

    generate_vmap_rule = True

    @staticmethod
    def forward(advice: str, count: int, *tensors: Tensor | None) -> _Gradients:
        del advice
        return tuple(None if x is None else x.detach() for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _Gradients) -> None:
        ctx.advice = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        refused("derivatives of second order", ctx.advice)()

    @staticmethod
    def jvp(ctx: Any, *_: Tensor) -> NoReturn:
        refused("forward-mode derivatives of gradients", ctx.advice)()


class _ReadOnce:
    """A context of an autograd function whose saved tensors are unpacked once.

    Hooks of saved tensors may refuse to do so again, as activation checkpointing does.
    """

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    @functools.cached_property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor | None, ...] = self._ctx.saved_tensors
        return tensors


def first_order_only(
    advice: str,
) -> Callable[[Callable[..., _Gradients]], Callable[..., _Gradients]]:
    """Marks a backward function as one that cannot be differentiated itself.

    As :func:`torch.autograd.function.once_differentiable`, but the error says what to do instead,
    and it comes whenever somebody differentiates again, not only if the incoming gradient has a
    history. Gradients with ``create_graph=True`` may be had as long as nobody does.

    Args:
        advice: what to do instead, e.g. ``"use `reversible=False`"``.

    Example:
        >>> import torch
        >>> class Square(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x
        ...
        ...     @staticmethod
        ...     @first_order_only("write `x * x`")
        ...     def backward(ctx, grad):
        ...         return (2 * ctx.saved_tensors[0] * grad,)
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> (gradient,) = torch.autograd.grad(Square.apply(x), x, create_graph=True)
        >>> gradient.backward()
        Traceback (most recent call last):
        RuntimeError: derivatives of second order do not pass through this operation; write `x * x`
    """

    def mark(backward: Callable[..., _Gradients]) -> Callable[..., _Gradients]:
        @functools.wraps(backward)
        def once(ctx: Any, *gradients: Any) -> _Gradients:
            # Compilers refuse second derivatives themselves, and cannot look into a refusal.
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                with torch.no_grad():
                    return backward(ctx, *gradients)
            context = _ReadOnce(ctx)
            with torch.no_grad():
                results = backward(context, *gradients)
            # Whoever differentiates with respect to one of these must come past the refusal.
            sources = [*gradients, *context.saved_tensors]
            if not torch._C._are_functorch_transforms_active():
                # There must be a refusal even if none of them has a history.
                sources.append(torch.empty((), requires_grad=True))
            refusing: _Gradients = _Refusal.apply(advice, len(results), *results, *sources)
            return refusing

        return once

    return mark


def refuse_transforms(advice: str) -> None:
    """Refuse a call within a transform of ``torch.func``.

    For operations whose results depend on more than their arguments, which no transform sees.

    Args:
        advice: what to do instead, e.g. ``"use `reversible=False`"``.

    Raises:
        RuntimeError: a transform is active (``grad``, ``vjp``, ``jvp``, ``vmap`` and what is built
            from them).
    """
    # The question by which torch itself tells transforms apart in `Function.apply`.
    if torch._C._are_functorch_transforms_active():
        refused("transforms of torch.func", advice)()
