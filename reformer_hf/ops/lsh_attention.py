"""LSH attention: hash, sort, attend within windows, merge the rounds (Reformer, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reformer_hf.ops.hash_operator import hash_in_graph
from reformer_hf.ops.hashing import factorize_buckets
from reformer_hf.ops.original_rounding import lonely_mass
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.recall import remember
from reformer_hf.ops.row_hashing import (
    HashSettings,
    RowHasher,
    count_buckets,
    factors_of_rows,
)
from reformer_hf.ops.sorting import BucketOrder, sort_by_bucket
from reformer_hf.ops.windowed_attention import (
    AttentionWindow,
    WindowedAttentionCall,
    windowed_attention,
)
from reformer_hf.ops.windowed_attention.call import SELF_SCORE
from reformer_hf.ops.windowed_attention.reference import attention_weights


@torch.no_grad()
def hash_tokens(
    vectors: Tensor,
    *,
    num_hashes: int,
    num_buckets: int | Sequence[int] | None,
    window: AttentionWindow,
    hash_seed: int,
    hash_family: str = "angular",
    bucket_width: float = 1.0,
    padding: Padding | None = None,
    planned_lengths: Sequence[int] | None = None,
) -> tuple[Tensor, int | None] | None:
    """Buckets of all tokens; padding gets the sentinel bucket above all others.

    Every row is hashed with the number of buckets for *its* real tokens, so that neither padding
    nor the other rows of a batch change anything.

    Args:
        vectors: ``[B, H, N, D]``.
        num_hashes: see :func:`lsh_attention`, as for all arguments not listed here.
        num_buckets: see there.
        window: see there.
        hash_seed: see there.
        hash_family: see there.
        bucket_width: see there.
        padding: see there.
        planned_lengths: tokens that every row will have in the end, if ``num_buckets`` is to be
            chosen for them and not for those at hand.

    Returns:
        ``[B, H, R, N]`` int64 and a number above all of them (``None`` while a graph is traced, in
        which it may depend on data); or ``None`` if every row has one bucket or one chunk: then
        there is nothing to hash, and all rounds would be alike.

    Raises:
        ValueError: a number of buckets that cannot be hashed, or absurdly many of them.
    """
    batch, heads, length, head_size = vectors.shape
    if window.pattern == "chunk" and length <= window.chunk_length:
        return None
    if torch.compiler.is_compiling():
        known = padding.lengths if padding is not None else (length,) * batch
        real = None if padding is None else padding.real
        if real is None and num_buckets is None and not planned_lengths:
            reach = max(1, window.before, window.after)
            if window.pattern == "window" and length < 2 * reach:
                return None
        buckets = hash_in_graph(
            *(vectors, real, planned_lengths or known),
            None if num_buckets is None else factorize_buckets(num_buckets),
            *(num_hashes, window.pattern, window.before, window.after, window.chunk_length),
            *(hash_seed, hash_family, bucket_width),
        )
        return buckets, None
    lengths = padding.count() if padding is not None else (length,) * batch
    per_row = factors_of_rows(planned_lengths or lengths, num_buckets, window)
    if max(map(count_buckets, per_row), default=1) == 1:
        return None
    settings = HashSettings(
        heads, head_size, num_hashes, hash_seed, hash_family, bucket_width, vectors.device
    )
    return RowHasher(settings, per_row, num_positions=length).hash_real(vectors, padding)


def padding_order(padding: Padding | None) -> BucketOrder | None:
    """The order of the sequence with padding moved behind, shared by all heads (one round)."""
    if padding is None:
        return None
    return sort_by_bucket((~padding.real).to(torch.int64)[:, None, None, :], num_buckets=2)


def _order(query_key: Tensor, **arguments: Any) -> tuple[BucketOrder | None, Tensor | None]:
    """The sorted order of the tokens, and which of them are real."""
    padding: Padding | None = arguments["padding"]

    def sort() -> tuple[Tensor, ...]:
        hashed = hash_tokens(query_key, **arguments)
        if hashed is not None:
            order: BucketOrder | None = sort_by_bucket(*hashed)
        else:
            # Chunks are cut in the sequence itself, padding included; windows count real tokens.
            order = None if arguments["window"].pattern == "chunk" else padding_order(padding)
        return () if order is None else (order.order, order.rank, order.bucket)

    found = remember(sort, narrow=True)
    order = BucketOrder(*found) if found else None
    return order, padding.real if padding is not None else None


def _rounded(
    rows: Tensor,
    order: BucketOrder | None,
    lonely: Tensor,
    window: AttentionWindow,
    dtype: torch.dtype,
) -> Tensor:
    """Rows ``[B, H, N, ..]`` as the original rounds them in its ``chunk`` pattern."""
    mass = lonely_mass(order, lonely, window, dtype)
    return rows if mass is None else rows * mass.unsqueeze(-1).to(rows.dtype)


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    *,
    window: AttentionWindow,
    num_hashes: int,
    hash_seed: int,
    num_buckets: int | Sequence[int] | None = None,
    hash_family: str = "angular",
    bucket_width: float = 1.0,
    padding: Padding | None = None,
    planned_lengths: Sequence[int] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention among tokens that hash alike, with shared queries and keys.

    1. Hash every vector into one of ``nb`` buckets, ``R`` times.
    2. Sort by bucket and position, per round.
    3. Attend to the tokens within the window of the sorted order; keys are normalised queries, and
       a token sees itself only if it sees nothing else.
    4. Merge the rounds by their ``lse``.

    Cost ``O(R N (W + C))`` and a sort per round. Source: Reformer, section 2 (arXiv:2001.04451).

    Args:
        query_key: ``[B, H, N, D]`` shared queries and keys.
        value: ``[B, H, N, D]``.
        window: who sees whom (its ``exclude_self`` should be true).
        num_hashes: rounds, ``R``.
        hash_seed: seed of the projections; equal seeds hash equal vectors alike.
        num_buckets: ``nb`` or its factors; ``None``: chosen from the real length of each row.
        hash_family: see :func:`~reformer_hf.ops.hashing.hash_vectors`.
        bucket_width: width of a Euclidean bucket.
        padding: which tokens are real; ``None`` if all are.
        planned_lengths: tokens that each row will have in the end, if the number of buckets is to
            be chosen for them.
        backend: see :func:`~reformer_hf.ops.windowed_attention.windowed_attention`.

    Returns:
        Output ``[B, H, N, D]`` and ``lse`` ``[B, H, N]``.
    """
    order, real = _order(
        query_key,
        num_hashes=num_hashes,
        num_buckets=num_buckets,
        window=window,
        hash_seed=hash_seed,
        hash_family=hash_family,
        bucket_width=bucket_width,
        padding=padding,
        planned_lengths=planned_lengths,
    )
    out, lse = windowed_attention(
        query_key, None, value, order, window=window, real=real, backend=backend
    )
    if window.pattern == "chunk":
        out = _rounded(out, order, lse < 0.5 * SELF_SCORE, window, lse.dtype)
    return out, lse


def lsh_attention_weights(query_key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
    """The matrix ``[B, H, N, N]`` with ``lsh_attention(..)[0] = weights @ value``.

    Takes the arguments of :func:`lsh_attention` but ``backend``; dense, for short sequences.
    """
    order, real = _order(query_key, **arguments)
    call = WindowedAttentionCall(
        query_key, None, value, order, real, arguments["window"], scale=1.0
    )
    weights = attention_weights(call)
    if call.window.pattern == "chunk":
        lonely = weights.diagonal(dim1=-2, dim2=-1) > 0.5
        weights = _rounded(weights, order, lonely, call.window, weights.dtype)
    return weights
