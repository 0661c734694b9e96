"""Local attention: windowed attention in the order of the sequence.

The same operation as LSH attention, with one round, the identity order, one bucket (padding has
its own), a key projection of its own, and a token may see itself.
"""

from __future__ import annotations

from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.sorting import BucketOrder, padding_order
from reformer_hf.ops.windowed_attention import WindowedAttentionCall, windowed_attention
from reformer_hf.ops.windowed_attention.reference import attention_weights


def _arrange(
    query: Tensor, window: AttentionWindow, padding: Padding | None
) -> tuple[BucketOrder | None, Tensor | None, float]:
    """The order of the tokens, which of them are real, and the scale of the scores."""
    # Chunks are cut in the sequence itself, padding included; windows count real tokens.
    order = None if window.pattern == "chunk" else padding_order(padding)
    return order, padding.real if padding is not None else None, query.shape[-1] ** -0.5


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: AttentionWindow,
    padding: Padding | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention to the neighbours in the sequence, scores ``q . k / sqrt(D)``.

    In the ``window`` pattern token ``i`` sees the ``before`` real tokens before it, itself, and the
    ``after`` real tokens behind it (Longformer's sliding window, arXiv:2004.05150, section 3.1). In
    the ``chunk`` pattern it sees its chunk and the neighbouring chunks (Reformer, section 5).

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, N, D]``.
        value: ``[B, H, N, D]``.
        window: who sees whom.
        padding: which tokens are real; ``None`` if all are.
        backend: see :func:`~reformer_hf.ops.windowed_attention.windowed_attention`.

    Returns:
        Output ``[B, H, N, D]`` and ``lse`` ``[B, H, N]``.
    """
    order, real, scale = _arrange(query, window, padding)
    return windowed_attention(
        query, key, value, order, window=window, real=real, scale=scale, backend=backend
    )


def local_attention_weights(
    query: Tensor, key: Tensor, value: Tensor, *, window: AttentionWindow, padding: Padding | None
) -> Tensor:
    """The matrix ``[B, H, N, N]`` with ``local_attention(..)[0] = weights @ value``; dense."""
    order, real, scale = _arrange(query, window, padding)
    return attention_weights(WindowedAttentionCall(query, key, value, order, real, window, scale))
