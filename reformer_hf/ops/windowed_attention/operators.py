"""Windowed attention as operators of torch: what autograd, compilers and exporters see.

A backend offers two plain functions, ``forward(call)`` and ``backward(call, ..)``. They are reached
through two operators, ``reformer_hf::windowed_attention`` and ``.._backward``, whose arguments are
tensors and plain values only. To ``torch.compile`` and ``torch.export`` an operator is one node of
the graph: its fake implementation says which tensors come out, and nobody looks inside. Autograd
meets the first operator alone and calls the second.

The backward pass needs the inputs, the output, its ``lse`` and one more number per token:

``mass``, what ``exp(S - lse)`` sums to. It is 1, but for tokens that see only themselves, and more
than once: their ``lse`` is ``SELF_SCORE`` plus a small logarithm, which fp32 rounds to multiples of
1/128. It is kept only where a token can meet itself more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.first_order import first_order_only, refused
from reformer_hf.ops.head_share import as_numbers, from_numbers
from reformer_hf.ops.kept_results import keep_results
from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.sorting import BucketOrder
from reformer_hf.ops.windowed_attention import torch_backend, triton_backend
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

__all__ = ["attend"]


class Kernels(Protocol):
    """What a backend offers to the operators (a module will do)."""

    def forward(self, call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output ``[B, H, N, D]``, ``lse`` and, where :func:`meets_itself_again`, ``mass``.

        The output lies as ``[B, N, H, D]`` in memory; ``lse`` and ``mass`` are ``[B, H, N]``.
        """

    def backward(
        self,
        call: WindowedAttentionCall,
        grad_out: Tensor,
        out: Tensor,
        lse: Tensor,
        mass: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of query, key (``None`` if shared) and value, laid out as the output."""


_KERNELS: dict[str, Kernels] = {"torch": torch_backend, "triton": triton_backend}

# The arguments of a call in the order of both schemas. Seeds change from step to step, so whole
# numbers may be symbols while a graph is traced. The lists save time: torch walks the arguments of
# a schema in quadratic time on every call.
_CALL = (
    "Tensor query, Tensor? key, Tensor value, Tensor? order, Tensor? rank, Tensor? bucket, "
    "Tensor? real, str pattern, SymInt[] before_after_chunk_length_head_share, "
    "bool[] causal_exclude_self_count_duplicates, float dropout, SymInt dropout_seed, "
    "float scale, str backend"
)
_NUM_TENSORS = 7
_ADVICE = 'use `attention_backend="reference"`, which takes short sequences'


def meets_itself_again(pattern: str, order: Tensor | None) -> bool:
    """Whether a token may stand in several places that see one another, so that mass matters."""
    return pattern == "chunk" or (order is not None and order.shape[2] > 1)


def _arguments(call: WindowedAttentionCall, backend: str) -> tuple[Any, ...]:
    """A call in the form of the schemas."""
    order, window = call.order, call.window
    tensors = (None, None, None) if order is None else (order.order, order.rank, order.bucket)
    return (
        *(call.query, call.key, call.value, *tensors, call.real),
        window.pattern,
        (window.before, window.after, window.chunk_length, *as_numbers(window.heads)),
        (window.causal, window.exclude_self, window.count_duplicates),
        window.dropout,
        # Seeds are used modulo 2**64; a schema takes signed numbers.
        (window.dropout_seed + (1 << 63)) % (1 << 64) - (1 << 63),
        *(call.scale, backend),
    )


def _call(arguments: tuple[Any, ...]) -> tuple[WindowedAttentionCall, str]:
    """The inverse of :func:`_arguments`."""
    query, key, value, order, rank, bucket, real = arguments[:_NUM_TENSORS]
    pattern, numbers, rules, dropout, dropout_seed, scale, backend = arguments[_NUM_TENSORS:]
    before, after, chunk_length, *share = numbers
    causal, exclude_self, count_duplicates = rules
    window = AttentionWindow(
        *(pattern, before, after, chunk_length, causal, exclude_self, count_duplicates),
        dropout=dropout,
        dropout_seed=dropout_seed,
        heads=from_numbers(*share),
    )
    ordered = None if order is None else BucketOrder(order, rank, bucket)
    return WindowedAttentionCall(query, key, value, ordered, real, window, scale), backend


def _present(x: Tensor | None, like: Tensor) -> Tensor:
    """Operators cannot return ``None``: nothing is a tensor without elements."""
    return like.new_empty(0) if x is None else x


@torch.library.custom_op(
    "reformer_hf::windowed_attention",
    mutates_args=(),
    schema=f"({_CALL}) -> (Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call, backend = _call(arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        out, lse, mass = _KERNELS[backend].forward(call)
    return out, lse, _present(mass, lse)


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    query, value, order, pattern = arguments[0], arguments[2], arguments[3], arguments[_NUM_TENSORS]
    lse = query.new_empty(query.shape[:3], dtype=wide_dtype(query))
    again = meets_itself_again(pattern, order)
    return (
        torch_backend.empty_heads(value),
        lse,
        torch.empty_like(lse) if again else lse.new_empty(0),
    )


@torch.library.custom_op(
    "reformer_hf::windowed_attention_backward",
    mutates_args=(),
    schema=(
        f"(Tensor grad_out, Tensor out, Tensor lse, Tensor mass, {_CALL})"
        " -> (Tensor, Tensor, Tensor)"
    ),
)
def _backward(
    grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    call, backend = _call(arguments)
    with torch.autocast(call.query.device.type, enabled=False):
        grad_query, grad_key, grad_value = _KERNELS[backend].backward(
            call, grad_out, out, lse, mass if mass.numel() else None
        )
    return grad_query, _present(grad_key, grad_query), grad_value


@_backward.register_fake
def _(
    grad_out: Tensor, out: Tensor, lse: Tensor, mass: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = arguments[:3]
    grad_key = query.new_empty(0) if key is None else torch_backend.empty_heads(key)
    return torch_backend.empty_heads(query), grad_key, torch_backend.empty_heads(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output, *inputs[:_NUM_TENSORS])
    ctx.rest = inputs[_NUM_TENSORS:]
    ctx.mark_non_differentiable(*output[1:])


@first_order_only(_ADVICE)
def _differentiate(ctx: Any, grad_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grad_query, grad_key, grad_value = _backward(grad_out, *saved, *ctx.rest)
    rest = (None,) * (len(saved) - 6 + len(ctx.rest))
    return grad_query, grad_key if ctx.needs_input_grad[1] else None, grad_value, *rest


_forward.register_autograd(_differentiate, setup_context=_save)


def _one_by_one(operator: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """A batching rule for ``torch.func.vmap``: the calls of a batch follow one another."""

    def batch(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
        pairs = list(zip(arguments, in_dims, strict=True))
        calls = (
            operator(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in pairs))
            for i in range(info.batch_size)
        )
        results = tuple(torch.stack(x) for x in zip(*calls, strict=True))
        return results, (0,) * len(results)

    return batch


_forward.register_vmap(_one_by_one(_forward))
_backward.register_vmap(_one_by_one(_backward))


class _Attention(torch.autograd.Function):
    """The operator outside of graphs, where transforms of ``torch.func`` do not take an operator.

    Its results may be there already: then they follow the arguments without being computed.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        return tuple(x.detach() for x in keep_results(lambda: _forward(*arguments)))

    setup_context = staticmethod(_save)
    backward = staticmethod(_differentiate)
    jvp = staticmethod(refused("forward-mode derivatives", _ADVICE))


def attend(call: WindowedAttentionCall, backend: str) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, N, D]`` and merged ``lse`` ``[B, H, N]`` (not differentiable).

    Args:
        call: the arguments.
        backend: a name that has kernels.
    """
    arguments = _arguments(call, backend)
    results = (_forward if torch.compiler.is_compiling() else _Attention.apply)(*arguments)
    return results[0], results[1]
