"""LSH attention of new tokens to stored ones: a step whose cost does not depend on the context.

A new token hashes itself, reads the rings of its buckets, one per round, and attends to the at most
``R W`` tokens whose positions it finds there. That is what :func:`~reformer_hf.ops.lsh_attention`
computes for the last token of a causal sequence in the ``window`` pattern, no more and no less.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.precision import wide_dtype
from reformer_hf.ops.stored_tokens import NewTokens, StoredTokens, gather

_NEVER = torch.iinfo(torch.int32).max


def _count_once(
    scores: Tensor, entries: Tensor, seen: Tensor, buckets: Tensor, own: Tensor
) -> Tensor:
    """``scores - log n`` for tokens of the rings that ``n`` rounds see; ``[B, H, n, R W]``.

    Bucket-mates stand in a ring in the order of their positions, so a token is seen in a round if
    it has the bucket of that round and is no older than the oldest that is seen there.

    Args:
        scores: ``[B, H, n, R W]``.
        entries: ``[B, H, n, R W]`` positions.
        seen: ``[B, H, n, R W]`` bool.
        buckets: ``[B, H, n, R W, R]``, of these tokens.
        own: ``[B, H, R, n]``, buckets of the new tokens.
    """
    own = own.transpose(2, 3)
    oldest = torch.where(seen, entries, _NEVER).unflatten(-1, (own.shape[-1], -1)).amin(-1)
    in_bucket = buckets == own.unsqueeze(-2)
    times = (in_bucket & (entries.unsqueeze(-1) >= oldest.unsqueeze(-2))).sum(-1)
    return scores - times.clamp(min=1).to(scores.dtype).log()


def _weights(scores: Tensor, dropout: float, dtype: torch.dtype) -> Tensor:
    weights = scores.softmax(dim=-1)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    return weights.to(dtype)


def attend_newest(
    new: NewTokens,
    ring: Tensor,
    stored: StoredTokens,
    *,
    position: Tensor | int,
    window: AttentionWindow,
) -> Tensor:
    """Attention of one new token per row, whose key and value are stored already.

    A slot without a token stands for the new token itself, at the score of a token that sees only
    itself: it weighs nothing as soon as any slot holds a token.

    Args:
        new: the new tokens, ``n = 1``.
        ring: ``[B, H, R, 1]``, the rings of their buckets.
        stored: the stored tokens; the new ones are not in the rings yet.
        position: of the new tokens: ``[B, 1, 1, 1]`` int64, or one number for all.
        window: how often a token counts that several rounds see, and dropout.

    Returns:
        ``[B, H, 1, D]``.
    """
    batch, heads, _, size = new.query.shape
    entries = stored.rings.positions(ring)
    seen = entries >= stored.first
    index = stored.index(torch.where(seen, entries, position))
    key = gather(stored.keys, index).view(batch * heads, -1, size)
    value = gather(stored.values, index).view(batch * heads, -1, size)
    scores = torch.bmm(new.query.reshape(batch * heads, 1, size), key.transpose(1, 2))
    scores = scores.view(batch, heads, 1, -1).to(wide_dtype(new.query))
    if not window.count_duplicates:
        buckets = gather(stored.buckets, index)
        scores = _count_once(scores, entries, seen, buckets, new.buckets)
    weights = _weights(torch.where(seen, scores, SELF_SCORE), window.dropout, value.dtype)
    return torch.bmm(weights.view(batch * heads, 1, -1), value).view(batch, heads, 1, size)


def same_bucket_before(buckets: Tensor) -> Tensor:
    """``[B, H, R, n, n]`` bool: token ``j`` stands before token ``i`` and in its bucket."""
    length = buckets.shape[-1]
    before = torch.ones((length, length), dtype=torch.bool, device=buckets.device).tril_(-1)
    return (buckets.unsqueeze(-1) == buckets.unsqueeze(-2)) & before


def attend_block(
    new: NewTokens, ring: Tensor, stored: StoredTokens, *, same: Tensor, window: AttentionWindow
) -> Tensor:
    """Attention of ``n <= W`` new tokens to stored ones, each other and, failing that, themselves.

    A token in a ring is seen by a new token unless ``W`` tokens of the bucket came after it, the
    new ones before that token among them.

    Args:
        new: the new tokens.
        ring: ``[B, H, R, n]``, the rings of their buckets.
        stored: the stored tokens; the new ones are not in the rings yet.
        same: ``[B, H, R, n, n]`` from :func:`same_bucket_before`.
        window: how often a token counts that several rounds see, and dropout.

    Returns:
        ``[B, H, n, D]``.
    """
    length, width = ring.shape[-1], stored.rings.window
    slot = torch.arange(width, device=ring.device)
    age = (stored.rings.counts_of(ring).unsqueeze(-1) - 1 - slot).remainder(width)
    young = age + same.sum(-1).unsqueeze(-1) < width
    entries = stored.rings.positions(ring)
    seen = young.transpose(2, 3).flatten(3) & (entries >= stored.first)
    index = stored.index(entries.clamp(min=0))
    key, value = gather(stored.keys, index), gather(stored.values, index)
    dtype = wide_dtype(new.query)
    past = torch.matmul(key, new.query.unsqueeze(-1)).squeeze(-1).to(dtype)
    among = torch.matmul(new.query, new.key.transpose(-1, -2)).to(dtype)
    if window.count_duplicates:
        # Scores of new tokens once per round: [B, H, n, R n].
        among = torch.where(same, among.unsqueeze(2), -torch.inf).transpose(2, 3).flatten(3)
    else:
        past = _count_once(past, entries, seen, gather(stored.buckets, index), new.buckets)
        among = torch.where(same.any(2), among, -torch.inf)
    past = torch.where(seen, past, -torch.inf)
    itself = past.new_full((*past.shape[:3], 1), SELF_SCORE)
    weights = _weights(torch.cat((past, among, itself), dim=-1), window.dropout, value.dtype)
    past, among, itself = weights.split((past.shape[-1], among.shape[-1], 1), dim=-1)
    among = among.unflatten(-1, (-1, length)).sum(-2)
    out = torch.matmul(past.unsqueeze(-2), value).squeeze(-2)
    return out + torch.matmul(among, new.value) + itself * new.value
