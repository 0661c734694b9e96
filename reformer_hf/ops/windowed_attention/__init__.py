"""Attention of sorted tokens within windows: one function, several backends.

LSH attention is this operation with an order made by hashing; local attention is the same operation
with the order of the sequence. :func:`windowed_attention` is the public function; the reading order
is ``call`` (what is asked), ``reference`` (what it means), ``slots`` and ``torch_backend`` (how it
is computed fast), ``triton_backend`` (how on CUDA), ``operators`` (how autograd and compilers see
it).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import BucketOrder
from reformer_hf.ops.windowed_attention import (
    operators,
    reference,
    torch_backend,
    triton_backend,
)
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall

__all__ = [
    "BACKENDS",
    "WindowedAttentionCall",
    "choose_backend",
    "windowed_attention",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        unsupported: why it cannot serve a call (a phrase), or ``None`` if it can.
        run: computes output and lse.
    """

    unsupported: Callable[[WindowedAttentionCall], str | None]
    run: Callable[[WindowedAttentionCall], tuple[Tensor, Tensor]]


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.unsupported, reference.run),
    "torch": Backend(torch_backend.unsupported, partial(operators.attend, backend="torch")),
    "triton": Backend(triton_backend.unsupported, partial(operators.attend, backend="triton")),
}
# Best first; "torch" serves every call. The reference is never chosen by itself, nor are kernels of
# the triton backend on a CPU, where they run in an interpreter.
_AUTOMATIC = {"cuda": ("triton", "torch")}
_announced: set[str] = set()


def choose_backend(call: WindowedAttentionCall, backend: str = "auto") -> str:
    """The name of the backend that serves a call.

    Args:
        call: the arguments.
        backend: a name from ``BACKENDS``, or ``"auto"`` for the fastest that can serve the call.

    Raises:
        ValueError: unknown name, or a named backend that cannot serve the call (with its reason and
            the alternatives). A named backend is never replaced silently.
    """
    if backend == "auto":
        names = _AUTOMATIC.get(call.query.device.type, ("torch",))
        name = next(n for n in names if BACKENDS[n].unsupported(call) is None)
        if name not in _announced and not torch.compiler.is_compiling():
            _announced.add(name)
            logger.info("windowed attention runs on the %r backend (automatic choice)", name)
        return name
    if backend not in BACKENDS:
        raise ValueError(f"`backend` must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[backend].unsupported(call)
    if reason is not None:
        able = [n for n, b in BACKENDS.items() if b.unsupported(call) is None]
        raise ValueError(
            f"`backend` {backend!r} cannot serve this call: {reason}; use one of {able}"
        )
    return backend


def _check(
    query: Tensor, key: Tensor | None, value: Tensor, order: BucketOrder | None, real: Tensor | None
) -> None:
    if query.dim() != 4:
        raise ValueError(f"`query` must be [batch, heads, length, size], got {tuple(query.shape)}")
    for name, x in (("key", key), ("value", value)):
        if x is None:
            continue
        if x.shape != query.shape:
            raise ValueError(
                f"`{name}` must have the shape of `query`, {tuple(query.shape)}, "
                f"got {tuple(x.shape)}"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"`{name}` must have dtype and device of `query`, {query.dtype} on "
                f"{query.device}, got {x.dtype} on {x.device}"
            )
    batch, heads, length, _ = query.shape
    if length == 0:
        raise ValueError("`query` must hold at least one token, got length 0")
    if order is not None:
        b, h, _, n = order.order.shape
        if b not in (1, batch) or h not in (1, heads) or n != length:
            raise ValueError(
                f"`order` must be [{batch} or 1, {heads} or 1, rounds, {length}], "
                f"got {tuple(order.order.shape)}"
            )
    if real is not None and tuple(real.shape) != (batch, length):
        raise ValueError(f"`real` must be [{batch}, {length}], got {tuple(real.shape)}")


def windowed_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    order: BucketOrder | None = None,
    *,
    window: AttentionWindow,
    real: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each token over the tokens that its windows make visible.

    With ``S_ij = scale * q_i . k_j`` and ``n_ij`` the number of rounds in which ``i`` sees ``j``,

        ``o_i = sum_j n_ij exp(S_ij - lse_i) v_j``, ``lse_i = log sum_j n_ij exp(S_ij)``,

    which equals attention per round, merged by ``exp(lse_r - lse)``; with
    ``window.count_duplicates=False`` every ``n_ij > 0`` is taken as 1. Source: Reformer, sections
    2 and 3 (arXiv:2001.04451); the merge as in FlashAttention-2 (arXiv:2307.08691).

    Args:
        query: ``[B, H, N, D]``, floating point. Any strides; ``[B, N, H, D]`` in memory is best.
        key: ``[B, H, N, D]``, or ``None``: keys are ``q_j / sqrt(|q_j|^2 + D 1e-6)``.
        value: ``[B, H, N, D]``.
        order: sorted order per round; ``None``: the order of the sequence, one bucket, one round.
        window: who sees whom.
        real: ``[B, N]`` bool, which tokens are real (read by the ``chunk`` pattern only).
        scale: factor on the scores.
        backend: ``"auto"``, or a name from ``BACKENDS``.

    Returns:
        Output ``[B, H, N, D]`` in the dtype of ``value``, and ``lse`` ``[B, H, N]`` in fp32 (fp64
        for fp64 inputs), through which no gradient flows. A row that sees nothing is zero, with an
        ``lse`` of minus infinity.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unusable backend.
    """
    _check(query, key, value, order, real)
    call = WindowedAttentionCall(query, key, value, order, real, window, scale)
    return BACKENDS[choose_backend(call, backend)].run(call)
