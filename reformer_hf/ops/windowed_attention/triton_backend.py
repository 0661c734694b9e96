"""Windowed attention in Triton: fused kernels for CUDA.

This module imports without Triton, which is needed only when a call is served. Reading order of the
kernels: ``triton_launch`` (how a call becomes launches), ``triton_tiles`` (tiles and visibility),
``triton_forward``, ``triton_backward``.
"""

from __future__ import annotations

from torch import Tensor

from reformer_hf.ops.triton_support import installed, interpreted
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.triton_launch import DTYPES, HEAD_SIZES, MAX_LENGTH


def unsupported(call: WindowedAttentionCall) -> str | None:
    """Why this backend cannot serve the call, or ``None`` if it can."""
    query = call.query
    _, _, length, size = query.shape
    if query.device.type != "cuda" and not (query.device.type == "cpu" and interpreted()):
        return f"it runs on cuda devices, got tensors on {query.device.type}"
    if not installed():
        return "it needs the package triton, which is not installed (`pip install triton`)"
    if query.dtype not in DTYPES:
        return f"it takes {', '.join(str(d) for d in DTYPES)}, got {query.dtype}"
    if size not in HEAD_SIZES:
        return f"it takes head sizes {', '.join(str(s) for s in HEAD_SIZES)}, got {size}"
    if length > MAX_LENGTH:
        return f"it takes at most {MAX_LENGTH} tokens, got {length}"
    return None


def forward(call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, ``lse`` and ``mass``, as :class:`~.operators.Kernels` has it."""
    from reformer_hf.ops.windowed_attention.triton_forward import forward as run

    return run(call)


def backward(
    call: WindowedAttentionCall, grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of query, key and value, as :class:`~.operators.Kernels` has it."""
    from reformer_hf.ops.windowed_attention.triton_backward import backward as run

    return run(call, grad_out, out, lse)
