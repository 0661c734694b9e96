"""What the original ``chunk`` pattern decides for a whole stack: the length, and the buckets.

transformers' Reformer pads a batch to a common multiple of the chunk lengths of all its layers, and
where the number of buckets is not configured it follows from that length. Both decide who shares a
chunk with whom, so a layer cannot decide them alone. Nothing here concerns the ``window`` pattern.

A common multiple may be many times the length, and all that the added positions do is stand between
the last chunk and the first, which are neighbours on a ring. As few as that takes are added.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.ops.padding import Padding


def _chunk_lengths(config: ReformerConfig, kinds: Collection[str]) -> set[int]:
    lengths = {"lsh": config.lsh_attn_chunk_length, "local": config.local_attn_chunk_length}
    return {length for kind, length in lengths.items() if kind in kinds}


def padded_length(config: ReformerConfig, kinds: Collection[str], length: int) -> int:
    """The length to which the original pads ``length`` tokens for layers of these kinds."""
    chunks = _chunk_lengths(config, kinds)
    if not chunks or length <= min(chunks):
        return length
    multiple = math.lcm(*chunks)
    return -(-length // multiple) * multiple


def _sufficient_length(
    config: ReformerConfig, kinds: Collection[str], length: int, full: int
) -> int:
    """The least length at which ``length`` tokens see what they see if padded to ``full``."""
    sufficient = length
    for kind in {"lsh", "local"}.intersection(kinds):
        chunk: int = getattr(config, f"{kind}_attn_chunk_length")
        before: int = getattr(config, f"{kind}_num_chunks_before")
        after: int | None = getattr(config, f"{kind}_num_chunks_after")
        held = -(-length // chunk)
        if kind == "local" and held == 1:
            continue  # whatever the ring, a token sees this chunk only
        # Two chunks at least, if there are as many: a layer with one does not hash.
        apart = max(held + max(before, after or 0), 2)
        chunks = min(apart, -(-full // chunk))
        sufficient = max(sufficient, (chunks - 1) * chunk + 1)
    return sufficient


def original_num_buckets(config: ReformerConfig, length: int) -> list[int]:
    """Factors of the number of buckets that the original chooses for a padded length.

    The largest power of two in ``2 N / C``, in two factors where it is large.
    """
    chunk = config.lsh_attn_chunk_length
    bits = max(1, 2 * (length // chunk)).bit_length() - 1
    largest = 2 * max(math.isqrt(config.max_position_embeddings // chunk), chunk)
    if 1 << bits <= largest:
        return [1 << bits]
    return [1 << (bits // 2), 1 << (bits - bits // 2)]


def arrange_for_chunks(
    x: Tensor, context: ForwardContext, config: ReformerConfig, kinds: Collection[str]
) -> tuple[Tensor, ForwardContext]:
    """Pad the vectors ``[B, N, d]`` of a batch as the original does, and settle its buckets.

    The number of buckets is that of the original's length. Of the positions that it adds, those are
    left out that change nothing; the last chunk is incomplete then.
    """
    batch, length, _ = x.shape
    full = padded_length(config, kinds, length)
    if context.num_buckets is None and config.num_buckets is None:
        context = replace(context, num_buckets=original_num_buckets(config, full))
    extra = _sufficient_length(config, kinds, length, full) - length
    if extra == 0:
        return x, context
    padding = context.padding
    real = torch.ones((batch, length), dtype=torch.bool, device=x.device)
    lengths: tuple[int, ...] | None = (length,) * batch
    if padding is not None:
        real, lengths = padding.real, padding.lengths
    padded = Padding(F.pad(real, (0, extra)), lengths)
    rotary = None if context.rotary is None else context.rotary.padded(extra)
    return F.pad(x, (0, 0, 0, extra)), replace(context, padding=padded, rotary=rotary)
