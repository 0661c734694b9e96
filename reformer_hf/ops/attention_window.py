"""Who sees whom among sorted tokens: the one description that hashing and attention share."""

from __future__ import annotations

from dataclasses import dataclass

from reformer_hf.choices import ATTENTION_PATTERNS
from reformer_hf.ops.head_share import HeadShare

# Score of a token with itself where a token may see itself only if it sees nothing else: far
# below every real score, far above minus infinity (the value is that of transformers' Reformer).
SELF_SCORE = -1e5


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
        heads: which of a layer's heads these are (for dropout); ``None``: all.
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
    heads: HeadShare | None = None

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
