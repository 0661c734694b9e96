"""LSH attention of new tokens to a memory: a step whose cost does not depend on the context.

A new token hashes itself, reads the rings of its buckets, one per round, and attends to the at most
``R W`` tokens whose positions it finds there. That is what :func:`~reformer_hf.ops.lsh_attention`
computes for the last token of a causal sequence in the ``window`` pattern, no more and no less.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.ops.attention_window import SELF_SCORE
from reformer_hf.ops.bucket_rings import BucketRings

_NEVER = torch.iinfo(torch.int32).max


def _scores_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows ``[n, D]`` at ``[..]`` as ``[.., D]``."""
    return rows.index_select(0, index.flatten()).view(*index.shape, rows.shape[-1])


def _sightings(entries: Tensor, seen: Tensor, stored: Tensor, own: Tensor, rounds: int) -> Tensor:
    """In how many rounds the tokens of the rings are seen, ``[B, H, n, R W]``.

    Bucket-mates stand in a ring in the order of their positions, so a token is seen in a round if
    it has the bucket of that round and is no older than the oldest that is seen there.

    Args:
        entries: ``[B, H, n, R W]`` positions.
        seen: ``[B, H, n, R W]`` bool.
        stored: ``[B, H, n, R W, R]`` buckets of these tokens.
        own: ``[B, H, n, R]`` buckets of the new tokens.
        rounds: ``R``.
    """
    oldest = torch.where(seen, entries, _NEVER).unflatten(-1, (rounds, -1)).amin(-1)
    in_bucket = stored == own.unsqueeze(-2)
    return (in_bucket & (entries.unsqueeze(-1) >= oldest.unsqueeze(-2))).sum(-1)


def attend_newest(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    buckets: Tensor,
    rings: BucketRings,
    rows: Tensor,
    index_base: Tensor,
    *,
    position: Tensor | int,
    first: Tensor | int,
    modulus: int | None,
    own: Tensor,
    count_duplicates: bool,
    dropout: float,
) -> Tensor:
    """Attention of one new token per row, whose key and value are in the memory already.

    A slot without a token stands for the new token itself, at the score of a token that sees only
    itself: it weighs nothing as soon as any slot holds a token.

    Args:
        query: ``[B, H, 1, D]``.
        keys: ``[B, H, capacity, D]``, normalised.
        values: ``[B, H, capacity, D]``.
        buckets: ``[B, H, capacity, R]``, of the tokens in memory.
        rings: without the new tokens.
        rows: ``[B, H, R, 1]``, the rings of the new tokens' buckets.
        index_base: ``[B, H, 1]`` int64, where the memory of each row and head begins.
        position: of the new tokens: ``[B, 1, 1]``, or one number for all.
        first: the oldest position that is still in memory, likewise.
        modulus: token ``p`` is stored at ``p mod modulus``; ``None``: at ``p``.
        own: ``[B, H, R, 1]``, buckets of the new tokens.
        count_duplicates: a token that several rounds see counts once for each.
        dropout: probability with which a weight is dropped.

    Returns:
        ``[B, H, 1, D]``.
    """
    batch, heads, capacity, size = keys.shape
    entries = rings.flat()[0].index_select(0, rows.flatten()).view(batch, heads, -1)
    seen = entries >= first
    index = torch.where(seen, entries, position)
    if modulus is not None:
        index = index.remainder(modulus)
    index = index + index_base
    key = _take(keys.view(-1, size), index).view(batch * heads, -1, size)
    value = _take(values.view(-1, size), index).view(batch * heads, -1, size)
    scores = torch.bmm(query.reshape(batch * heads, 1, size), key.transpose(1, 2))
    scores = scores.view(batch, heads, -1).to(_scores_dtype(query))
    if not count_duplicates:
        rounds = rows.shape[2]
        stored = _take(buckets.view(-1, rounds), index)
        counts = _sightings(
            entries.unsqueeze(2),
            seen.unsqueeze(2),
            stored.unsqueeze(2),
            own.transpose(2, 3),
            rounds,
        )
        scores = scores - counts.squeeze(2).clamp(min=1).to(scores.dtype).log()
    weights = torch.where(seen, scores, SELF_SCORE).softmax(dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    weights = weights.to(value.dtype).view(batch * heads, 1, -1)
    return torch.bmm(weights, value).view(batch, heads, 1, size)


def same_bucket_before(buckets: Tensor) -> Tensor:
    """``[B, H, R, n, n]`` bool: token ``j`` stands before token ``i`` and in its bucket."""
    length = buckets.shape[-1]
    before = torch.ones((length, length), dtype=torch.bool, device=buckets.device).tril_(-1)
    return (buckets.unsqueeze(-1) == buckets.unsqueeze(-2)) & before


def attend_block(
    query: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    keys: Tensor,
    values: Tensor,
    buckets: Tensor,
    rings: BucketRings,
    rows: Tensor,
    index_base: Tensor,
    same: Tensor,
    *,
    first: Tensor | int,
    modulus: int | None,
    own: Tensor,
    count_duplicates: bool,
    dropout: float,
) -> Tensor:
    """Attention of ``n <= W`` new tokens to the memory, to each other and, failing that, to itself.

    A token in a ring is seen by a new token unless ``W`` tokens of the bucket came after it, the
    new ones before that token among them.

    Args:
        query: ``[B, H, n, D]``; its keys and values are not in the memory yet.
        new_key: ``[B, H, n, D]``, normalised.
        new_value: ``[B, H, n, D]``.
        keys: as in :func:`attend_newest`, like all arguments not listed here.
        values: see there.
        buckets: see there.
        rings: see there.
        rows: ``[B, H, R, n]``.
        index_base: see there.
        same: ``[B, H, R, n, n]`` from :func:`same_bucket_before`.
        first: see there.
        modulus: see there.
        own: ``[B, H, R, n]``.
        count_duplicates: see there.
        dropout: see there.

    Returns:
        ``[B, H, n, D]``.
    """
    batch, heads, _, size = keys.shape
    rounds, length = own.shape[2:]
    window = rings.window
    dtype = _scores_dtype(query)
    all_entries, all_counts = rings.flat()
    flat_rows = rows.flatten()
    entries = all_entries.index_select(0, flat_rows).view(batch, heads, rounds, length, window)
    count = all_counts.index_select(0, flat_rows).view(batch, heads, rounds, length, 1)
    slot = torch.arange(window, device=query.device)
    age = (count - 1 - slot).remainder(window)
    seen = age + same.sum(-1).unsqueeze(-1) < window
    # [B, H, R, n, W] to [B, H, n, R W].
    entries = entries.transpose(2, 3).flatten(3)
    seen = seen.transpose(2, 3).flatten(3) & (
        entries >= (first.unsqueeze(-1) if isinstance(first, Tensor) else first)
    )
    index = entries.clamp(min=0)
    if modulus is not None:
        index = index.remainder(modulus)
    index = index + index_base.unsqueeze(-1)
    key, value = _take(keys.view(-1, size), index), _take(values.view(-1, size), index)
    past = torch.matmul(key, query.unsqueeze(-1)).squeeze(-1).to(dtype)
    new = torch.matmul(query, new_key.transpose(-1, -2)).to(dtype)
    if count_duplicates:
        # Scores of new tokens once per round: [B, H, n, R n].
        new = torch.where(same, new.unsqueeze(2), -torch.inf).transpose(2, 3).flatten(3)
    else:
        stored = _take(buckets.view(-1, rounds), index)
        times = _sightings(entries, seen, stored, own.transpose(2, 3), rounds)
        past = past - times.clamp(min=1).to(dtype).log()
        new = torch.where(same.any(2), new, -torch.inf)
    past = torch.where(seen, past, -torch.inf)
    itself = past.new_full((batch, heads, length, 1), SELF_SCORE)
    weights = torch.cat((past, new, itself), dim=-1).softmax(dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    weights = weights.to(value.dtype)
    past, new, itself = weights.split((past.shape[-1], new.shape[-1], 1), dim=-1)
    new = new.unflatten(-1, (-1, length)).sum(-2)
    out = torch.matmul(past.unsqueeze(-2), value).squeeze(-2)
    return out + torch.matmul(new, new_value) + itself * new_value
