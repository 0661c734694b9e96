"""Hashing as an operator of torch, for graphs.

What a batch is hashed with depends on data (the real length of every row), and on a generator that
starts from a number. Neither can stand in a graph, so while ``torch.compile`` or ``torch.export``
traces a model, :func:`~reformer_hf.ops.lsh_attention.hash_tokens` becomes one node and computes the
same when the graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings, factorize_buckets
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.row_hashing import RowHasher, factors_of_rows


@torch.library.custom_op(
    "reformer_hf::hash_tokens",
    mutates_args=(),
    schema=(
        "(Tensor vectors, Tensor? real, SymInt[]? lengths, SymInt[]? num_buckets, "
        "SymInt num_hashes, str pattern, SymInt before, SymInt after, SymInt chunk_length, "
        "SymInt hash_seed, str hash_family, float bucket_width) -> Tensor"
    ),
)
def _hash(
    vectors: Tensor,
    real: Tensor | None,
    lengths: Sequence[int] | None,
    num_buckets: Sequence[int] | None,
    num_hashes: int,
    pattern: str,
    before: int,
    after: int,
    chunk_length: int,
    hash_seed: int,
    hash_family: str,
    bucket_width: float,
) -> Tensor:
    batch, _, length, _ = vectors.shape
    if lengths is None:
        lengths = [length] * batch if real is None else real.sum(dim=1).tolist()
    window = AttentionWindow(pattern, before, after, chunk_length, False, True)
    settings = HashSettings(num_hashes, hash_seed, num_buckets, hash_family, bucket_width)
    hasher = RowHasher(settings, factors_of_rows(settings, window, lengths), num_positions=length)
    buckets, _ = hasher.hash_real(vectors, None if real is None else Padding(real, None))
    # A compiled graph relies on the strides that it was traced with.
    return buckets.contiguous()


@_hash.register_fake
def _(
    vectors: Tensor,
    real: Tensor | None,
    lengths: Sequence[int] | None,
    num_buckets: Sequence[int] | None,
    num_hashes: int,
    *_: object,
) -> Tensor:
    batch, heads, length, _size = vectors.shape
    return vectors.new_empty((batch, heads, num_hashes, length), dtype=torch.int64)


def hash_in_graph(
    vectors: Tensor, settings: HashSettings, window: AttentionWindow, padding: Padding | None
) -> Tensor:
    """Buckets ``[B, H, R, N]`` int64 of vectors ``[B, H, N, D]``, as one node of a graph.

    Args:
        vectors: what to hash.
        settings: how to hash.
        window: who sees whom.
        padding: which tokens are real; padding gets the bucket above all others. Where its lengths
            are not known, they are counted when the graph runs.
    """
    batch, _, length, _ = vectors.shape
    known = padding.lengths if padding is not None else (length,) * batch
    num_buckets = settings.num_buckets
    buckets: Tensor = _hash(
        vectors,
        None if padding is None else padding.real,
        settings.planned_lengths or known,
        None if num_buckets is None else factorize_buckets(num_buckets),
        settings.num_hashes,
        *(window.pattern, window.before, window.after, window.chunk_length),
        *(settings.seed, settings.family, settings.bucket_width),
    )
    return buckets
