"""Hashing queries and keys that have projections of their own.

Both are hashed with the same rotations (Reformer, section 2, arXiv:2001.04451), which belong to
the key-value head, so that the keys of a group of query heads are hashed once. Keys of pretrained
models share a large mean, next to which they all look alike: they are hashed after taking a
*centre* from them. Queries are hashed as they are. The hash is computed in fp32 whatever the dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reformer_hf.ops.hashing import (
    HashProjections,
    HashSettings,
    apply_projections,
    draw_projections,
    factorize_buckets,
)
from reformer_hf.ops.hybrid_attention.window import HybridWindow, Level

# Keys that are summed at a time.
_PART = 4096


@torch.no_grad()
def key_centre(key: Tensor, level: Level) -> Tensor:
    """The mean ``[B, Hkv, 1, D]`` (fp32) of those keys that every query of a level may know of.

    In a causal model these are the keys before the level (or the local window, if that is longer:
    what a query there sees is decided without hashing). Otherwise all keys. The more of a text they
    are, the better they stand for its keys.

    Args:
        key: ``[B, Hkv, N, D]``, real tokens only.
        level: whose queries are hashed.
    """
    # The same to the last bit however the keys lie in memory: a hash may hang on it.
    wide = torch.float32 if key.device.type == "mps" else torch.float64
    total = sum(part.to(wide).sum(dim=2) for part in key[:, :, : level.known].split(_PART, dim=2))
    return (total / min(level.known, key.shape[2])).float().unsqueeze(2)


def _projections(
    key: Tensor, window: HybridWindow, num_buckets: int, head: int | None, num_heads: int
) -> HashProjections:
    """The hash functions of all key-value heads, or of one, and of all rounds."""
    settings = HashSettings(window.num_hashes, window.hash_seed, heads=window.heads)
    factors = factorize_buckets(num_buckets)
    drawn = draw_projections(settings, factors, num_heads, key.shape[-1], device=key.device)
    return drawn if head is None else replace(drawn, weights=drawn.weights[head : head + 1])


@torch.no_grad()
def hash_queries_and_keys(
    query: Tensor,
    key: Tensor,
    centre: Tensor,
    window: HybridWindow,
    level: Level,
    *,
    head: int | None = None,
    num_heads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Buckets of the queries and the keys of a level.

    Args:
        query: ``[B, H, M, D]``, the queries at ``level.start .. level.stop``.
        key: ``[B, Hkv, level.stop, D]``.
        centre: from :func:`key_centre`.
        window: who sees whom.
        level: number of buckets ``nb``.
        head: the key-value head that ``query`` and ``key`` are a part of, if they are one head.
        num_heads: key-value heads of the whole call; ``None``: those of ``key``.

    Returns:
        ``[B, Hkv, R, H / Hkv, M]`` and ``[B, Hkv, R, level.stop]`` int64; sinks, which no round
        looks up, stand in the bucket ``nb`` of their own.
    """
    groups = key.shape[1]
    drawn = _projections(key, window, level.num_buckets, head, num_heads or groups)
    # One head of every group at a time, so that no queries are copied.
    by_group = query.unflatten(1, (groups, -1)).unbind(dim=2)
    query_buckets = torch.stack([apply_projections(x, drawn) for x in by_group], dim=3)
    key_buckets = apply_projections(key, drawn, centre=centre)
    if window.sink_tokens:
        key_buckets = key_buckets.clone()
        key_buckets[..., : window.sink_tokens] = level.num_buckets
    return query_buckets, key_buckets
