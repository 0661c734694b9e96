"""What one call of windowed attention consists of: the form in which backends receive it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import BucketOrder


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
