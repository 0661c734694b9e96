"""LSH attention: hash, sort, attend within windows, merge the rounds (Reformer, section 2)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.hash_operator import hash_in_graph
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.kept_results import keep_results
from reformer_hf.ops.original_rounding import lonely_mass
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.row_hashing import RowHasher, buckets_for_length, factors_of_rows
from reformer_hf.ops.sorting import BucketOrder, padding_order, sort_by_bucket
from reformer_hf.ops.windowed_attention import WindowedAttentionCall, windowed_attention
from reformer_hf.ops.windowed_attention.reference import attention_weights

# Shorter chunks are no faster.
_SHORT_CHUNK = 64


@torch.no_grad()
def hash_tokens(
    vectors: Tensor,
    settings: HashSettings,
    window: AttentionWindow,
    padding: Padding | None = None,
) -> tuple[Tensor, int | None] | None:
    """Buckets of all tokens; padding gets the sentinel bucket above all others.

    Every row is hashed with the number of buckets for *its* real tokens, so that neither padding
    nor the other rows of a batch change anything.

    Args:
        vectors: ``[B, H, N, D]``.
        settings: how to hash.
        window: who sees whom.
        padding: which tokens are real; ``None`` if all are.

    Returns:
        ``[B, H, R, N]`` int64 and a number above all of them (``None`` while a graph is traced, in
        which it may depend on data); or ``None`` if every row has one bucket or one chunk: then
        there is nothing to hash, and all rounds would be alike.

    Raises:
        ValueError: a number of buckets that cannot be hashed, or absurdly many of them.
    """
    batch, _, length, _ = vectors.shape
    if window.pattern == "chunk" and length <= window.chunk_length:
        return None
    if torch.compiler.is_compiling():
        # Without padding or plan the length decides how many buckets, and whether it is one.
        chosen = padding is None and settings.num_buckets is None and not settings.planned_lengths
        if chosen and window.pattern == "window" and buckets_for_length(length, window) == 1:
            return None
        return hash_in_graph(vectors, settings, window, padding), None
    lengths = padding.count() if padding is not None else (length,) * batch
    per_row = factors_of_rows(settings, window, lengths)
    if max(map(math.prod, per_row), default=1) == 1:
        return None
    return RowHasher(settings, per_row, num_positions=length).hash_real(vectors, padding)


def _order(
    query_key: Tensor, settings: HashSettings, window: AttentionWindow, padding: Padding | None
) -> BucketOrder | None:
    """The sorted order of the tokens; ``None``: that of the sequence."""

    def sort() -> tuple[Tensor, ...]:
        hashed = hash_tokens(query_key, settings, window, padding)
        if hashed is not None:
            order: BucketOrder | None = sort_by_bucket(*hashed)
        else:
            # Chunks are cut in the sequence itself, padding included; windows count real tokens.
            order = None if window.pattern == "chunk" else padding_order(padding)
        return () if order is None else (order.order, order.rank, order.bucket)

    found = keep_results(sort, narrow=True)
    return BucketOrder(*found) if found else None


def _without_room(
    window: AttentionWindow, padding: Padding | None, order: BucketOrder | None, length: int
) -> AttentionWindow:
    """The window, with chunks that hold no more padding than they must.

    Where every row's real tokens fill less than the first chunk of a round and the chunks around it
    hold padding alone, a shorter chunk shows every token the same others.
    """
    if window.pattern != "chunk" or order is None or padding is None or padding.lengths is None:
        return window
    most = max(padding.lengths)
    num_chunks = -(-length // window.chunk_length)
    if most > window.chunk_length or num_chunks <= max(window.before, window.after):
        return window
    return replace(window, chunk_length=min(window.chunk_length, max(most, _SHORT_CHUNK)))


def _rounded(
    x: Tensor,
    order: BucketOrder | None,
    lonely: Tensor,
    window: AttentionWindow,
    dtype: torch.dtype,
) -> Tensor:
    """Numbers ``[B, H, N, ..]`` as the original rounds them in its ``chunk`` pattern."""
    mass = lonely_mass(order, lonely, window, dtype)
    return x if mass is None else x * mass.unsqueeze(-1).to(x.dtype)


def lsh_attention(
    query_key: Tensor,
    value: Tensor,
    settings: HashSettings,
    *,
    window: AttentionWindow,
    padding: Padding | None = None,
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
        settings: how to hash.
        window: who sees whom (its ``exclude_self`` should be true).
        padding: which tokens are real; ``None`` if all are.
        backend: see :func:`~reformer_hf.ops.windowed_attention.windowed_attention`.

    Returns:
        Output ``[B, H, N, D]`` and ``lse`` ``[B, H, N]``.
    """
    order = _order(query_key, settings, window, padding)
    window = _without_room(window, padding, order, query_key.shape[2])
    real = None if padding is None else padding.real
    out, lse = windowed_attention(
        query_key, None, value, order, window=window, real=real, backend=backend
    )
    if window.pattern == "chunk":
        out = _rounded(out, order, lse < 0.5 * SELF_SCORE, window, lse.dtype)
    return out, lse


def lsh_attention_weights(
    query_key: Tensor,
    value: Tensor,
    settings: HashSettings,
    *,
    window: AttentionWindow,
    padding: Padding | None = None,
) -> Tensor:
    """The matrix ``[B, H, N, N]`` with ``lsh_attention(..)[0] = weights @ value``.

    Takes the arguments of :func:`lsh_attention` but ``backend``; dense, for short sequences.
    """
    order = _order(query_key, settings, window, padding)
    real = None if padding is None else padding.real
    call = WindowedAttentionCall(query_key, None, value, order, real, window, scale=1.0)
    weights = attention_weights(call)
    if window.pattern == "chunk":
        lonely = weights.diagonal(dim1=-2, dim2=-1) > 0.5
        weights = _rounded(weights, order, lonely, window, weights.dtype)
    return weights
