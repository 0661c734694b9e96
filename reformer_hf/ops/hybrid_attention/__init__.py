"""Hybrid attention: sinks, a local window and LSH buckets in one softmax, queries and keys apart.

What a model that was pretrained with full attention can be given without forcing shared queries and
keys on it. :func:`hybrid_attention` is the public function; the reading order is ``window`` (who
sees whom), ``query_key_hashing``, ``reference`` (what it means), ``local_band``, ``staircase`` and
``torch_backend`` (how it is computed fast), ``triton_backend`` (on CUDA), ``operators`` (how
autograd and compilers see it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention import operators, reference, torch_backend, triton_backend
from reformer_hf.ops.hybrid_attention.call import HybridCall
from reformer_hf.ops.hybrid_attention.window import HybridWindow

__all__ = ["BACKENDS", "HybridWindow", "hybrid_attention", "hybrid_attention_weights"]


@dataclass(frozen=True)
class Backend:
    """One implementation.

    Attributes:
        unsupported: why it cannot serve a call (a phrase), or ``None`` if it can.
        run: computes output and lse.
    """

    unsupported: Callable[[HybridCall], str | None]
    run: Callable[[HybridCall], tuple[Tensor, Tensor]]


BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.unsupported, reference.run),
    "torch": Backend(torch_backend.unsupported, partial(operators.attend, backend="torch")),
    "triton": Backend(triton_backend.unsupported, partial(operators.attend, backend="triton")),
}
# What is chosen on its own, in this order; the reference never is.
_AUTOMATIC = {"cuda": ("triton", "torch")}


def _check(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.dim() != 4:
            raise ValueError(f"`{name}` must be [batch, heads, length, size], got {tuple(x.shape)}")
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"`{name}` must have dtype and device of `query`, {query.dtype} on "
                f"{query.device}, got {x.dtype} on {x.device}"
            )
    (batch, heads, queries, size), (rows, groups, length, key_size) = query.shape, key.shape
    if (rows, key_size) != (batch, size) or groups == 0 or heads % groups:
        raise ValueError(
            f"`key` must be [{batch}, a divisor of {heads}, length, {size}], got {tuple(key.shape)}"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"`value` must be [{batch}, {groups}, {length}, size], got {tuple(value.shape)}"
        )
    if not 1 <= queries <= length:
        raise ValueError(
            f"`query` must hold the last of the {length} tokens of `key`, got {queries} tokens"
        )
    if real is not None and (tuple(real.shape) != (batch, length) or real.dtype != torch.bool):
        raise ValueError(
            f"`real` must be bool [{batch}, {length}], got {real.dtype} {tuple(real.shape)}"
        )


def hybrid_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: HybridWindow,
    *,
    real: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each query over sinks, local window and bucket mates.

    With ``V_i`` the set of keys that ``window`` makes visible to query ``i``, a union in which each
    key counts once, and ``S_ij = scale * q_i . k_j``,

        ``o_i = sum_{j in V_i} exp(S_ij - lse_i) v_j``, ``lse_i = log sum_{j in V_i} exp(S_ij)``.

    Args:
        query: ``[B, H, M, D]``, floating point: the last ``M`` of the ``N`` tokens.
        key: ``[B, Hkv, N, D]``, ``Hkv`` dividing ``H``: query head ``h`` reads key-value head
            ``h // (H / Hkv)`` (grouped-query attention).
        value: ``[B, Hkv, N, Dv]``.
        window: who sees whom.
        real: ``[B, N]`` bool, false where a token is padding; ``None``: all are real. Padding may
            stand anywhere; it is seen by nothing and changes nothing.
        scale: factor on the scores; ``None``: ``1 / sqrt(D)``.
        backend: ``"auto"``, or a name from ``BACKENDS``.

    Returns:
        Output ``[B, H, M, Dv]`` (zeros for padding) and ``lse`` ``[B, H, M]`` in fp32 (fp64 for
        fp64 inputs; minus infinity for padding), through which no gradient flows.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or an unusable backend.
    """
    _check(query, key, value, real)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    call = HybridCall(query, key, value, real, window, scale)
    name = backend
    if backend == "auto":
        names = _AUTOMATIC.get(query.device.type, ("torch",))
        name = next(n for n in names if BACKENDS[n].unsupported(call) is None)
    if name not in BACKENDS:
        raise ValueError(f"`backend` must be 'auto' or one of {sorted(BACKENDS)}, got {backend!r}")
    reason = BACKENDS[name].unsupported(call)
    if reason is not None:
        raise ValueError(f"`backend` {name!r} cannot serve this call: {reason}")
    return BACKENDS[name].run(call)


def hybrid_attention_weights(
    query: Tensor,
    key: Tensor,
    window: HybridWindow,
    *,
    real: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights of :func:`hybrid_attention`, ``[B, H, M, N]``, after dropout; dense.

    Args:
        query, key, window, real, scale: as there.

    Returns:
        ``exp(S_ij - lse_i)`` where ``i`` sees ``j``, else 0, in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: as there, or more tokens than matrices are formed for.
    """
    _check(query, key, key, real)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    call = HybridCall(query, key, key, real, window, scale)
    reason = reference.unsupported(call)
    if reason is not None:
        raise ValueError(f"attention weights cannot be formed: {reason}")
    with torch.autocast(query.device.type, enabled=False):
        return reference.attention_weights(call)
