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

from reformer_hf.ops.padding import Padding
from reformer_hf.ops.row_hashing import HashSettings, RowHasher, factors_of_rows
from reformer_hf.ops.windowed_attention import AttentionWindow


@torch.library.custom_op(
    "reformer_hf::hash_tokens",
    mutates_args=(),
    schema=(
        "(Tensor vectors, Tensor? real, SymInt[]? lengths, SymInt[]? num_buckets, "
        "SymInt num_hashes, str pattern, SymInt before, SymInt after, SymInt chunk_length, "
        "SymInt hash_seed, str hash_family, float bucket_width) -> Tensor"
    ),
)
def hash_in_graph(
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
    """Buckets ``[B, H, R, N]`` int64 of vectors ``[B, H, N, D]``.

    Args:
        vectors: what to hash.
        real: ``[B, N]`` bool; ``None`` if all tokens are real. Padding gets the bucket above all
            others.
        lengths: tokens of every row for which numbers of buckets are chosen; ``None``: its real
            tokens.
        num_buckets: factors of the number of buckets; ``None``: chosen from the lengths.
        num_hashes: rounds, ``R``.
        pattern: of the :class:`AttentionWindow`, as ``before``, ``after`` and ``chunk_length``.
        before: see there.
        after: see there.
        chunk_length: see there.
        hash_seed: seed of the projections.
        hash_family: see :func:`~reformer_hf.ops.hashing.hash_vectors`.
        bucket_width: width of a Euclidean bucket.
    """
    batch, heads, length, size = vectors.shape
    if lengths is None:
        lengths = [length] * batch if real is None else real.sum(dim=1).tolist()
    window = AttentionWindow(pattern, before, after, chunk_length, False, True)
    settings = HashSettings(
        heads, size, num_hashes, hash_seed, hash_family, bucket_width, vectors.device
    )
    per_row = factors_of_rows(lengths, num_buckets, window)
    hasher = RowHasher(settings, per_row, num_positions=length)
    buckets, _ = hasher.hash_real(vectors, None if real is None else Padding(real, None))
    # A compiled graph relies on the strides that it was traced with.
    return buckets.contiguous()


@hash_in_graph.register_fake
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
