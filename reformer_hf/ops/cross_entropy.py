"""Linear projection and cross-entropy in chunks: the vocabulary's logits never exist at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.ops.first_order import first_order_only, refused
from reformer_hf.ops.precision import wide_dtype

IGNORE_INDEX = -100
_ADVICE = "use `chunk_size_lm_head=0`, which forms all logits"


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    chunk_size: int,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Sum of ``-log softmax(hidden W^T + b)[label]`` over the labelled positions.

    Only positions whose label is not ``ignore_index`` are computed at all, ``chunk_size`` of them
    at a time. The gradients ``dlogits = softmax - onehot`` are formed in the same sweep, so that
    the backward pass only scales them: peak memory is one ``[chunk_size, V]`` block.

    Source: the idea is that of Liger-Kernel's fused linear cross-entropy (arXiv:2410.10989).

    Args:
        hidden: ``[T, d]``.
        weight: ``[V, d]``.
        bias: ``[V]`` or ``None``.
        labels: ``[T]`` int64; ``ignore_index`` marks positions without a loss.
        chunk_size: positions whose logits are formed together; 0: all of them.
        ignore_index: the label to skip.

    Returns:
        A scalar in fp32 (fp64 for fp64 inputs): the *sum*; divide by the number of labels for the
        mean.

    Raises:
        ValueError: a negative ``chunk_size``.
    """
    if chunk_size < 0:
        raise ValueError(f"`chunk_size` must not be negative, got {chunk_size}")
    labelled = (labels != ignore_index).nonzero().squeeze(-1)
    # A parameter needs gradients by itself, even while they are off.
    need = [
        torch.is_grad_enabled() and x is not None and x.requires_grad
        for x in (hidden, weight, bias)
    ]
    compiling = torch.compiler.is_compiling()
    total: Tensor = (_LinearCrossEntropy if compiling else _OutsideOfGraphs).apply(
        hidden[labelled],
        weight,
        bias,
        labels[labelled],
        chunk_size or max(1, labelled.numel()),
        need,
    )[0]
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum of the losses and, where needed, its gradients, which follow from it at once."""

    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        chunk_size: int,
        need: list[bool],
    ) -> tuple[Tensor | None, ...]:
        wide = wide_dtype(hidden)
        device_type = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device_type) and wide != torch.float64:
            compute = torch.get_autocast_dtype(device_type)
        need_hidden, need_weight, need_bias = need
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and need_bias else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(device_type, enabled=False):
            matrix = weight.to(compute)
            for start in range(0, hidden.shape[0], chunk_size):
                part = hidden[start : start + chunk_size].to(compute)
                target = labels[start : start + chunk_size]
                logits = F.linear(part, matrix).to(wide)
                if bias is not None:
                    logits += bias
                logits = torch.log_softmax(logits, dim=-1)
                total -= logits.gather(1, target.unsqueeze(1)).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                grad = logits.exp_()
                grad[torch.arange(target.shape[0], device=target.device), target] -= 1.0
                if grad_bias is not None:
                    grad_bias += grad.sum(dim=0)
                grad = grad.to(compute)
                if grad_hidden is not None:
                    grad_hidden[start : start + chunk_size] = (grad @ matrix).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += grad.t() @ part
        return total, grad_hidden, grad_weight, grad_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        # The gradients are results like the sum, so that they have the history of what they come
        # from, and a second derivative is noticed. Nobody receives them.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]

    @staticmethod
    @first_order_only(_ADVICE)
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = (
            None if saved is None else (saved * grad_total.to(saved.dtype)).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*grads, None, None, None)


class _OutsideOfGraphs(_LinearCrossEntropy):
    """The same, with refusals into which compilers do not look."""

    jvp = staticmethod(refused("forward-mode derivatives", _ADVICE))
    vmap = staticmethod(refused("batches of torch.func.vmap", _ADVICE))
