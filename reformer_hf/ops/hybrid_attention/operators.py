"""Hybrid attention as operators of torch: what autograd, compilers and exporters see.

As in :mod:`reformer_hf.ops.windowed_attention.operators`: a backend offers ``forward(call)`` and
``backward(call, ..)``, reached through ``reformer_hf::hybrid_attention`` and ``.._backward``, whose
arguments are tensors and plain values. Hashing and sorting are inside the operator, and done again
by the backward pass, so that nothing but inputs, output and ``lse`` is kept.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from reformer_hf.ops.first_order import first_order_only
from reformer_hf.ops.head_share import as_numbers, from_numbers
from reformer_hf.ops.hybrid_attention import torch_backend, triton_backend
from reformer_hf.ops.hybrid_attention.call import HybridCall, empty_output
from reformer_hf.ops.hybrid_attention.window import HybridWindow
from reformer_hf.ops.precision import wide_dtype

__all__ = ["attend"]


class Kernels(Protocol):
    """What a backend offers to the operators (a module will do)."""

    def forward(self, call: HybridCall) -> tuple[Tensor, Tensor]:
        """Output ``[B, H, M, Dv]``, laid out as ``[B, M, H, Dv]``, and ``lse`` ``[B, H, M]``."""

    def backward(
        self, call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, laid out as the output."""


_KERNELS: dict[str, Kernels] = {"torch": torch_backend, "triton": triton_backend}

_CALL = (
    "Tensor query, Tensor key, Tensor value, Tensor? real, "
    "SymInt[] local_sinks_rounds_bucket_window_buckets_seed_head_share, bool causal, "
    "float dropout, SymInt dropout_seed, float scale, str backend"
)
_NUM_TENSORS = 4


def _signed(seed: int) -> int:
    """Seeds are used modulo 2**64; a schema takes signed numbers."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _arguments(call: HybridCall, backend: str) -> tuple[Any, ...]:
    """A call in the form of the schemas."""
    window = call.window
    numbers = (
        *(window.local_window, window.sink_tokens, window.num_hashes, window.bucket_window),
        *(window.num_buckets or 0, _signed(window.hash_seed), *as_numbers(window.heads)),
    )
    return (
        *(call.query, call.key, call.value, call.real),
        *(numbers, window.causal, window.dropout, _signed(window.dropout_seed)),
        *(call.scale, backend),
    )


def _call(arguments: tuple[Any, ...]) -> tuple[HybridCall, str]:
    """The inverse of :func:`_arguments`."""
    numbers, causal, dropout, dropout_seed, scale, backend = arguments[_NUM_TENSORS:]
    local, sinks, rounds, bucket_window, buckets, seed, *share = numbers
    window = HybridWindow(
        *(local, sinks, rounds, bucket_window, buckets or None, seed),
        *(causal, dropout, dropout_seed, from_numbers(*share)),
    )
    query, key, value, real = arguments[:_NUM_TENSORS]
    return HybridCall(query, key, value, real, window, scale), backend


@torch.library.custom_op(
    "reformer_hf::hybrid_attention", mutates_args=(), schema=f"({_CALL}) -> (Tensor, Tensor)"
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    call, backend = _call(arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        return _KERNELS[backend].forward(call)


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    return empty_output(query, value), query.new_empty(query.shape[:3], dtype=wide_dtype(query))


@torch.library.custom_op(
    "reformer_hf::hybrid_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor out, Tensor lse, {_CALL}) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call, backend = _call(arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        return _KERNELS[backend].backward(call, grad_out, out, lse)


@_backward.register_fake
def _(grad_out: Tensor, out: Tensor, lse: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = arguments[:3]
    return empty_output(query, query), empty_output(key, key), empty_output(value, value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:_NUM_TENSORS])
    ctx.rest = inputs[_NUM_TENSORS:]
    ctx.mark_non_differentiable(output[1])


@first_order_only('use `backend="reference"`, which takes short sequences')
def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward(grad_out, *ctx.saved_tensors, *ctx.rest)
    return *grads, None, *((None,) * len(ctx.rest))


_forward.register_autograd(_differentiate, setup_context=_save)


def attend(call: HybridCall, backend: str) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, M, Dv]`` and ``lse`` ``[B, H, M]`` (not differentiable)."""
    results = _forward(*_arguments(call, backend))
    return results[0], results[1]
