"""Hybrid attention with dense masks, line by line: the oracle of every test.

Any device, any dtype, plain autograd; memory ``O(B H R M N)``, so for short sequences only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import HybridCall, rows
from reformer_hf.ops.hybrid_attention.query_key_hashing import hash_queries_and_keys, key_centre
from reformer_hf.ops.hybrid_attention.window import levels
from reformer_hf.ops.precision import widen
from reformer_hf.ops.windowed_attention.dropout import keep_mask, key_codes, query_codes

MAX_LENGTH = 4096


def unsupported(call: HybridCall) -> str | None:
    """Why this backend cannot serve the call, or ``None`` if it can."""
    length = call.key.shape[2]
    if length > MAX_LENGTH:
        return f"it forms N x N matrices and takes at most {MAX_LENGTH} tokens, got {length}"
    return None


def visible_keys(call: HybridCall) -> Tensor:
    """``[B, Hkv, G, M, N]`` bool: which keys a query sees; the call holds no padding."""
    window, (batch, heads) = call.window, call.query.shape[:2]
    groups, length = call.key.shape[1:3]
    key = torch.arange(length, device=call.key.device)
    query = torch.arange(call.first_query, length, device=key.device).unsqueeze(-1)

    # 1. Sinks and the local window, the same for all heads.
    distance = query - key
    local = distance.abs() < window.local_window
    seen = local | (key < window.sink_tokens)
    if window.causal:
        seen = seen & (distance >= 0)
    seen = seen.expand(batch, groups, heads // groups, -1, -1).clone()

    # 2. Per round, of the keys in the query's bucket those nearest to the local window.
    for level in levels(window, call.first_query, length):
        own = slice(level.start - call.first_query, level.stop - call.first_query)
        centre = key_centre(call.key, level)
        query_buckets, key_buckets = hash_queries_and_keys(
            call.query[:, :, own], call.key[:, :, : level.stop], centre, window, level
        )
        # [B, Hkv, R, G, M, N]
        same = query_buckets.unsqueeze(-1) == key_buckets[:, :, :, None, None, :]
        before = same & (distance[own, : level.stop] >= window.local_window)
        counted = before.flip(-1).cumsum(dim=-1).flip(-1)
        found = before & (counted <= window.keys_before)
        if not window.causal:
            after = same & (-distance[own, : level.stop] >= window.local_window)
            found |= after & (after.cumsum(dim=-1) <= window.keys_after)
        seen[..., own, : level.stop] |= found.any(dim=2)
    return seen


def _weights(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Weights ``[B, H, M, N]``, after dropout, and ``lse`` of a call without padding."""
    query, groups = call.query, call.key.shape[1]
    batch, heads, queries, _ = query.shape
    grouped = query.unflatten(1, (groups, -1))
    scores = widen(torch.matmul(grouped, call.key.unsqueeze(2).transpose(-1, -2))) * call.scale
    scores = scores.masked_fill(~visible_keys(call), -torch.inf)
    lse = scores.logsumexp(dim=-1, keepdim=True)
    weights = (scores - lse).exp()
    window = call.window
    if window.dropout > 0.0:
        key = torch.arange(call.key.shape[2], device=query.device)
        first, all_heads = call.query_numbering
        row = torch.arange(batch, device=query.device).unsqueeze(1) + call.first_row
        rows_and_heads = row * all_heads + first + torch.arange(heads, device=query.device)
        codes = query_codes(
            window.dropout_seed,
            rows_and_heads.view(batch, groups, -1, 1),
            torch.zeros_like(key[:1]),
            key[call.first_query :],
        )
        keep = keep_mask(codes.unsqueeze(-1), key_codes(window.dropout_seed, key), window.dropout)
        weights = weights * keep / (1.0 - window.dropout)
    return weights.flatten(1, 2), lse.squeeze(-1).flatten(1, 2).detach()


def _attend(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output and ``lse`` of a call without padding."""
    weights, lse = _weights(call)
    weights = weights.to(call.value.dtype).unflatten(1, (call.key.shape[1], -1))
    return torch.matmul(weights, call.value.unsqueeze(2)).flatten(1, 2), lse


def attention_weights(call: HybridCall) -> Tensor:
    """The weights of all pairs, ``[B, H, M, N]``, zero for padding and for what is not seen."""
    if call.real is None:
        return _weights(call)[0]
    (batch, heads, queries, _), length = call.query.shape, call.key.shape[2]
    weights = widen(call.query.new_zeros((batch, heads, queries, length)))
    for row, own in rows(call):
        by_query = weights[row.row, :, row.queries]
        wide = torch.zeros_like(by_query)
        wide[..., row.keys] = _weights(own)[0][0]
        weights[row.row, :, row.queries] = wide
    return weights


def run(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output ``[B, H, M, D]`` and ``lse`` ``[B, H, M]``."""
    with torch.autocast(call.query.device.type, enabled=False):
        if call.real is None:
            return _attend(call)
        out = call.query.new_zeros((*call.query.shape[:3], call.value.shape[-1]))
        lse = widen(call.query.new_full(call.query.shape[:3], -torch.inf))
        for row, own in rows(call):
            own_out, own_lse = _attend(own)
            out[row.row, :, row.queries] = own_out[0]
            lse[row.row, :, row.queries] = own_lse[0]
        return out, lse
