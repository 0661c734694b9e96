"""Hybrid attention in Triton: fused kernels for CUDA.

This module imports without Triton, which is needed only when a call is served. Reading order of the
kernels: ``triton_turns`` (how a call becomes launches), ``triton_tiles`` (tiles and visibility),
``triton_forward``, ``triton_backward``.
"""

from __future__ import annotations

from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import HybridCall
from reformer_hf.ops.hybrid_attention.triton_turns import DTYPES, LARGEST_SIZE, MAX_LENGTH
from reformer_hf.ops.triton_support import installed, interpreted


def unsupported(call: HybridCall) -> str | None:
    """Why this backend cannot serve the call, or ``None`` if it can."""
    query, value = call.query, call.value
    if query.device.type != "cuda" and not (query.device.type == "cpu" and interpreted()):
        return f"it runs on cuda devices, got tensors on {query.device.type}"
    if not installed():
        return "it needs the package triton, which is not installed (`pip install triton`)"
    if query.dtype not in DTYPES:
        return f"it takes {', '.join(str(d) for d in DTYPES)}, got {query.dtype}"
    largest = max(query.shape[3], value.shape[3])
    if largest > LARGEST_SIZE:
        return f"it takes head sizes of at most {LARGEST_SIZE}, got {largest}"
    length, buckets = call.key.shape[2], call.window.num_buckets or 0
    if length > MAX_LENGTH:
        return f"it takes at most {MAX_LENGTH} tokens, got {length}"
    if buckets * min(call.window.bucket_window, length) > MAX_LENGTH:
        return (
            f"it takes at most {MAX_LENGTH} buckets times keys a bucket, got {buckets} times "
            f"{call.window.bucket_window}"
        )
    return None


def forward(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output and ``lse``, as :class:`~.operators.Kernels` has it."""
    from reformer_hf.ops.hybrid_attention.triton_forward import forward as run

    return run(call)


def backward(
    call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, as :class:`~.operators.Kernels` has it."""
    from reformer_hf.ops.hybrid_attention.triton_backward import backward as run

    return run(call, grad_out, out, lse)
