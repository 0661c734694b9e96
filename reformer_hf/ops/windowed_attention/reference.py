"""LSH attention with dense ``N x N`` masks: the paper line by line, the oracle of every test.

Any device, any dtype, plain autograd; memory ``O(B H R N^2)``, so for short sequences only. It is
also the path that produces attention matrices for ``output_attentions=True``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import SELF_SCORE
from reformer_hf.ops.precision import widen
from reformer_hf.ops.shared_keys import normalize_keys
from reformer_hf.ops.sorting import BucketOrder, identity_order
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.dropout import (
    keep_mask,
    key_codes,
    numbered_slices,
    query_codes,
)

MAX_LENGTH = 4096


def unsupported(call: WindowedAttentionCall) -> str | None:
    """Why this backend cannot serve the call, or ``None`` if it can."""
    length = call.query.shape[2]
    if length > MAX_LENGTH:
        return f"it forms N x N matrices and takes at most {MAX_LENGTH} tokens, got {length}"
    return None


def _window_counts(call: WindowedAttentionCall, order: BucketOrder) -> Tensor:
    """``[B', H', R, N, N]``: 1 where token ``i`` sees token ``j`` in a round, else 0."""
    window = call.window
    distance = order.rank.unsqueeze(-1) - order.rank.unsqueeze(-2)
    same_bucket = order.bucket.unsqueeze(-1) == order.bucket.unsqueeze(-2)
    near = (distance <= window.before) & (distance >= -window.after)
    return (same_bucket & near).to(torch.int64)


def _chunk_counts(call: WindowedAttentionCall, order: BucketOrder) -> Tensor:
    """``[B', H', R, N, N]``: how often token ``i`` meets token ``j`` in the chunks of a round.

    The rounds' chunks form one ring; a chunk may meet the last chunk of the round before its own.
    """
    window, rounds, length = call.window, order.num_hashes, order.order.shape[-1]
    chunks = -(-length // window.chunk_length)
    ring = rounds * chunks
    offset = torch.arange(rounds, device=order.rank.device).view(1, 1, rounds, 1) * chunks
    chunk = order.rank // window.chunk_length + offset
    step = chunk[:, :, :, :, None, None] - chunk[:, :, None, None, :, :]
    # step: [B', H', query round, query, key round, key]; the round of the key does not matter.
    counts = torch.zeros_like(step.select(4, 0))
    for shift in range(-window.after, window.before + 1):
        counts += ((step - shift).remainder(ring) == 0).sum(dim=4)
    position = torch.arange(length, device=counts.device)
    if window.causal:
        counts = counts * (position.unsqueeze(-1) >= position)
    if call.real is not None:
        allowed = (call.real.unsqueeze(-1) & call.real.unsqueeze(-2))[:, None, None]
        if window.exclude_self:
            allowed = allowed | (position.unsqueeze(-1) == position)
        counts = counts * allowed
    return counts


def _weights(call: WindowedAttentionCall) -> tuple[Tensor, Tensor]:
    """Merged attention weights ``[B, H, N, N]`` (after dropout) and ``lse`` ``[B, H, N]``."""
    window, query = call.window, call.query
    batch, heads, length, _ = query.shape
    order = call.order or identity_order(length, query.device)

    # 1. Scores; keys are normalised queries if there are none of their own.
    key = normalize_keys(query) if call.key is None else call.key
    scores = widen(torch.matmul(query, key.transpose(-1, -2)))
    scores = (scores * call.scale).unsqueeze(2)

    # 2. How often a pair is visible in each round.
    counts = (_window_counts if window.pattern == "window" else _chunk_counts)(call, order)
    counts = counts.expand(batch, heads, -1, -1, -1)

    # 3. A token sees itself only if it sees nothing else: once per round, at a very low score.
    if window.exclude_self:
        itself = torch.eye(length, dtype=torch.bool, device=query.device)
        scores = torch.where(itself, scores.new_full((), SELF_SCORE), scores)

    # 4. Either a pair counts once per sighting, or once altogether.
    multiplicity = counts.to(scores.dtype)
    if not window.count_duplicates:
        multiplicity = multiplicity / multiplicity.sum(dim=2, keepdim=True).clamp(min=1.0)

    # 5. Softmax over everything that any round makes visible; a row that sees nothing gives zeros.
    # The multiplicity is a factor, not a logarithm to add: next to SELF_SCORE, fp32 holds only
    # multiples of 1/128.
    scores = torch.where(counts > 0, scores, -torch.inf)
    highest = scores.detach().amax(dim=(2, 4), keepdim=True)
    blind = torch.isneginf(highest)
    weights = multiplicity * (scores - highest.masked_fill(blind, 0.0)).exp()
    total = weights.sum(dim=(2, 4), keepdim=True)
    lse = (highest + total.log()).flatten(2)
    weights = weights / total.masked_fill(blind, 1.0)

    # 6. Dropout acts on each round's weight.
    if window.dropout > 0.0:
        device = query.device
        position = torch.arange(length, device=device)
        rows = torch.arange(batch, device=device).view(-1, 1, 1, 1)
        own = torch.arange(heads, device=device).view(-1, 1, 1)
        slices = numbered_slices(rows, own, window.heads, heads)
        numbers = torch.arange(weights.shape[2], device=device).view(-1, 1)
        codes = query_codes(window.dropout_seed, slices, numbers, position)
        keep = keep_mask(
            codes.unsqueeze(-1), key_codes(window.dropout_seed, position), window.dropout
        )
        weights = weights * keep / (1.0 - window.dropout)
    return weights.sum(dim=2), lse


def attention_weights(call: WindowedAttentionCall) -> Tensor:
    """The merged attention matrix ``[B, H, N, N]``; rows sum to 1 where nothing is dropped."""
    with torch.autocast(call.query.device.type, enabled=False):
        return _weights(call)[0]


def run(call: WindowedAttentionCall) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, N, D]`` and merged ``lse`` ``[B, H, N]``."""
    with torch.autocast(call.query.device.type, enabled=False):
        weights, lse = _weights(call)
        return torch.matmul(weights.to(call.value.dtype), call.value), lse.detach()
