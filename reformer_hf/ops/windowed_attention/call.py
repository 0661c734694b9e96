"""What one call of windowed attention consists of: the form in which backends receive it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.sorting import BucketOrder

ATTENTION_PATTERNS = ("window", "chunk")

# Score of a token with itself where a token may see itself only if it sees nothing else: far
# below every real score, far above minus infinity (the value is that of transformers' Reformer).
SELF_SCORE = -1e5
# Keys are divided by sqrt(|q|^2 + D * KEY_NORM_EPS), as in transformers' Reformer.
KEY_NORM_EPS = 1e-6


@dataclass(frozen=True)
class AttentionWindow:
    """Which sorted tokens see which.

    Attributes:
        pattern: ``"window"``: same bucket and ``rank(i) - before <= rank(j) <= rank(i) + after``;
            ``"chunk"``: the sorted tokens of all rounds form a ring of chunks, and a chunk sees
            itself and its neighbours on that ring.
        before: how far back a token sees: tokens (``window``) or chunks (``chunk``).
        after: how far ahead, likewise.
        chunk_length: sorted tokens of one chunk. In the ``window`` pattern it changes nothing: how
            many tokens are processed together is a backend's own affair.
        causal: a token sees no later position. In the ``window`` pattern this is ``after = 0``,
            because tokens of one bucket stand in the order of their positions.
        exclude_self: a token sees itself only if it sees nothing else (shared queries and keys).
        count_duplicates: a pair that several rounds make visible counts once for each of them. If
            not, its score is lowered by the logarithm of that number (Reformer, equation 5).
        dropout: probability with which an attention weight is dropped.
        dropout_seed: the seed of the drop decisions; equal seeds drop the same pairs.
    """

    pattern: str
    before: int
    after: int
    chunk_length: int
    causal: bool
    exclude_self: bool
    count_duplicates: bool = True
    dropout: float = 0.0
    dropout_seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in ATTENTION_PATTERNS:
            raise ValueError(f"`pattern` must be one of {ATTENTION_PATTERNS}, got {self.pattern!r}")
        if self.before < 0 or self.after < 0:
            raise ValueError(
                f"`before` and `after` must not be negative, got {self.before} and {self.after}"
            )
        if self.chunk_length < 1:
            raise ValueError(f"`chunk_length` must be positive, got {self.chunk_length}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")
        if self.causal and self.pattern == "window" and self.after:
            raise ValueError(
                f"a causal window has nothing after the token: `after` must be 0, got {self.after}"
            )


@dataclass(frozen=True)
class WindowedAttentionCall:
    """Validated arguments of :func:`~reformer_hf.ops.windowed_attention.windowed_attention`.

    Attributes:
        query: ``[B, H, N, D]``.
        key: ``[B, H, N, D]``, or ``None`` for normalised queries as keys.
        value: ``[B, H, N, D]``.
        order: the sorted order, or ``None`` for the order of the sequence, one bucket, one round.
        real: ``[B, N]`` bool, or ``None`` if all tokens are real. Only the ``chunk`` pattern reads
            it; in the ``window`` pattern padding stands in a bucket of its own.
        window: who sees whom.
        scale: factor on the scores.
    """

    query: Tensor
    key: Tensor | None
    value: Tensor
    order: BucketOrder | None
    real: Tensor | None
    window: AttentionWindow
    scale: float

    @property
    def num_hashes(self) -> int:
        """Rounds, ``R``."""
        return 1 if self.order is None else self.order.num_hashes


def normalize_keys(query: Tensor) -> Tensor:
    """``k = q / sqrt(|q|^2 + D eps)``: unit-length keys from shared query/key vectors.

    The norm is formed in fp32 or better and the result has the dtype of ``query``.
    """
    wide = query if query.dtype == torch.float64 else query.float()
    return (wide * inverse_key_norm(wide)).to(query.dtype)


def inverse_key_norm(query: Tensor) -> Tensor:
    """``1 / sqrt(|q|^2 + D eps)`` with the last dimension kept; ``query`` fp32 or fp64."""
    norm = torch.linalg.vector_norm(query, dim=-1, keepdim=True)
    return torch.rsqrt(norm.square() + query.shape[-1] * KEY_NORM_EPS)
