"""Who sees whom where queries and keys stay apart: sinks, a local window, and buckets beyond it."""

from __future__ import annotations

from dataclasses import dataclass

from reformer_hf.ops.head_share import HeadShare

# Positions of one level differ by up to this factor, and are hashed into as many buckets. With two,
# buckets hold between half of `bucket_window` keys and as many as that: of fuller ones a query sees
# the last keys only, in emptier ones it sees less for the same work.
_LEVEL_RATIO = 2
# Where the first level ends.
_FIRST_LEVEL = 1024


@dataclass(frozen=True)
class HybridWindow:
    """Which keys a query sees; positions count the real tokens of a row.

    Query ``i`` sees, each key once and in one softmax,

    * *sinks*: the first ``sink_tokens`` keys;
    * *local window*: ``0 <= i - j < local_window`` (not causal: ``|i - j| < local_window``);
    * *buckets*: in each of ``num_hashes`` rounds, of the keys outside the sinks whose bucket is the
      query's, the last ``bucket_window`` that stand before the local window (not causal: half of
      them before it, half behind it).

    Pretrained models give much weight to their first tokens whatever these say (Xiao et al. 2023,
    arXiv:2309.17453), so without sinks a local window is of little use.

    Attributes:
        local_window: tokens, the query's own included.
        sink_tokens: tokens.
        num_hashes: rounds, ``R``; 0: sinks and local window alone.
        bucket_window: keys per round, ``W``.
        num_buckets: of every round, or ``None``: about one for every ``bucket_window`` keys. In a
            causal model that number follows from the query's own position and doubles with it,
            at 1,024, 2,048, .. tokens, so that neither later tokens nor the way in which a
            prefill is cut change what a token sees. A number of one's own has all keys centred
            from the first ``local_window`` alone.
        hash_seed: of the projections.
        causal: a query sees no later key.
        dropout: probability with which an attention weight is dropped.
        dropout_seed: of the drop decisions.
        heads: which of a layer's key-value heads these are; ``None``: all.

    Raises:
        ValueError: a number outside its range.
    """

    local_window: int = 256
    sink_tokens: int = 4
    num_hashes: int = 4
    bucket_window: int = 64
    num_buckets: int | None = None
    hash_seed: int = 0
    causal: bool = True
    dropout: float = 0.0
    dropout_seed: int = 0
    heads: HeadShare | None = None

    def __post_init__(self) -> None:
        smallest = {"local_window": 1, "sink_tokens": 0, "num_hashes": 0, "bucket_window": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}")

    @property
    def keys_before(self) -> int:
        """Keys of a bucket that a query sees before its local window."""
        return self.bucket_window if self.causal else (self.bucket_window + 1) // 2

    @property
    def keys_after(self) -> int:
        """Keys of a bucket that a query sees behind its local window."""
        return 0 if self.causal else self.bucket_window // 2


@dataclass(frozen=True)
class Level:
    """Queries that are hashed into the same number of buckets.

    Attributes:
        start: position of the first query.
        stop: position behind the last query; keys up to here take part.
        num_buckets: of a round.
        known: keys from which those of the level are centred: they stand before all its queries.
    """

    start: int
    stop: int
    num_buckets: int
    known: int


def levels(window: HybridWindow, first_query: int, length: int) -> tuple[Level, ...]:
    """The levels of the queries at ``first_query .. length`` that have anything to look up.

    Args:
        window: who sees whom.
        first_query: position of the first query.
        length: real tokens of the row, ``N``.
    """
    if window.num_hashes == 0 or length <= window.local_window + window.sink_tokens:
        return ()
    if not window.causal:
        buckets = window.num_buckets or _buckets(window, length)
        return (Level(first_query, length, buckets, length),)
    first_query = max(first_query, window.local_window + window.sink_tokens)
    if first_query >= length:
        return ()
    if window.num_buckets is not None:
        return (Level(first_query, length, window.num_buckets, window.local_window),)
    found, start, stop = [], 0, _FIRST_LEVEL
    while start < length:
        if first_query < stop:
            # Where the level begins, wherever the queries of this call do.
            known = max(start, window.local_window)
            own = max(start, first_query), min(stop, length)
            found.append(Level(*own, _buckets(window, stop), known))
        start, stop = stop, stop * _LEVEL_RATIO
    return tuple(found)


def _buckets(window: HybridWindow, length: int) -> int:
    """About one bucket for every ``bucket_window`` keys, a power of two."""
    return 1 << max(0, -(-length // window.bucket_window) - 1).bit_length()
