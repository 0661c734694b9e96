"""The last product of a sub-layer, which a backward pass may do without."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


class _LinearGradients(torch.autograd.Function):
    """``x W^T + b`` for the backward pass: zeros of its shape, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return x.new_zeros((*x.shape[:-1], weight.shape[0]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_weight = rows.t().mm(x.flatten(0, -2)) if need_weight else None
        grad_bias = rows.sum(dim=0) if ctx.has_bias and need_bias else None
        return rows.mm(weight).view(x.shape) if need_x else None, grad_weight, grad_bias


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling the module is one product and nothing else: no adapter, no hook."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked


def project(module: nn.Module, x: Tensor, values: bool = True) -> Tensor:
    """``module(x)``, or with ``values=False`` a tensor with its gradients only.

    Where the stream before a residual was kept, the backward pass does not need the residual's
    values, and the product that ends it can be left out. What is not a plain ``nn.Linear`` is
    called all the same.

    Args:
        module: a linear layer ``[.., i] -> [.., o]``, or what an adapter made of it.
        x: ``[.., i]``.
        values: whether the values of the result matter; else they are zeros (in the dtype that
            the values would have).

    Returns:
        ``[.., o]``.
    """
    if values or not _is_plain(module):
        projected: Tensor = module(x)
        return projected
    operands: list[Tensor | None] = [x, module.weight, module.bias]
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        operands = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in operands]
    without_values: Tensor = _LinearGradients.apply(*operands)
    return without_values
