"""Windowed attention, forward, in Triton.

One program computes the output of one tile of queries in one round. It holds the tile's queries and
walks over the tiles of keys that its window touches, with the usual running maximum ``m``, sum
``l`` and weighted sum of values ``a``:

    ``m' = max(m, max_j S_ij)``, ``l' = l 2^(m - m') + sum_j P_ij``, ``a' = a 2^(m - m') + P V``,
    ``P = 2^(S - m')``.

**Rounds** are launched one after the other, and each starts from the ``m``, ``l``, ``a`` that the
one before left in the rows of its tokens: within a round every token has exactly one program, so
this needs no atomic operation and gives the same bits every time. The merge of the rounds by their
logsumexp is nothing but this running softmax. The last round divides:

    ``o = a / l``, ``lse = m + log l``.

Between rounds ``m`` and ``l`` stand in the memory of ``lse`` and ``mass``, and ``a`` in fp32.

Source: FlashAttention-2 (arXiv:2307.08691), algorithm 1, over gathered tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from reformer_hf.ops.attention_window import SELF_SCORE
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.triton_launch import FORWARD, VARIABLE, Launch
from reformer_hf.ops.windowed_attention.triton_tiles import (
    gather,
    keep_factors,
    key_codes,
    key_tags,
    load_keys,
    neighbours,
    own_weight,
    query_codes,
    query_tags,
    sees,
    sightings,
    tile_slots,
    tile_tokens,
)

_SELF_SCORE = tl.constexpr(SELF_SCORE)
_LN_2 = tl.constexpr(math.log(2.0))


@triton.jit(do_not_specialize=VARIABLE)
def forward_kernel(
    query,
    key,
    value,
    out,
    state,
    lse,
    mass,
    order,
    tag,
    place,
    real,
    query_b,
    query_h,
    query_n,
    key_b,
    key_h,
    key_n,
    value_b,
    value_h,
    value_n,
    order_b,
    order_h,
    length,
    heads,
    first_head,
    all_heads,
    num_tiles,
    num_rounds,
    chunk_length,
    before,
    after,
    shift,
    span,
    scale,
    query_seed,
    key_seed,
    threshold,
    keep_scale,
    round_,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    RING: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
    UNION: tl.constexpr,
    DROPOUT: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``scale`` includes ``log2(e)``; see :class:`~.triton_launch.Launch` for the arguments."""
    tile = tl.program_id(0)
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // heads
    h = slice_ % heads
    numbered = b * all_heads + first_head + h
    query += b * query_b + h * query_h
    if key is not None:
        key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    if order is not None:
        order += b * order_b + h * order_h
    if tag is not None:
        tag += b * order_b + h * order_h
    if place is not None:
        place += b * order_b + h * order_h
    if real is not None:
        real += b * length
    if RING:
        tile += round_ * num_tiles
    ring = num_rounds * (num_tiles // SUB)

    _, slots, valid = tile_slots(
        tile, round_, length, num_tiles, num_rounds, chunk_length, BLOCK, SUB, RING
    )
    tokens = tile_tokens(order, round_, slots, valid, length)
    q = gather(query, tokens, valid, query_n, HEAD)
    query_tag, own_tag = query_tags(
        tag, real, tokens, round_, slots, valid, length, shift, RING, CAUSAL, EXCLUDE_SELF
    )
    query_code = query_codes(query_seed, numbered, round_, tokens)

    rows = (b * length + tokens) * heads + h
    columns = tl.arange(0, HEAD)
    elements = rows[:, None] * HEAD + columns[None, :]
    line = slice_ * length + tokens
    if FIRST:
        m = tl.full([BLOCK], -float("inf"), tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        a = tl.zeros([BLOCK, HEAD], tl.float32)
    else:
        m = tl.load(lse + line, mask=valid, other=-float("inf"))
        sums = tl.load(mass + line, mask=valid, other=0.0)
        a = tl.load(state + elements, mask=valid[:, None], other=0.0)

    start, stop = neighbours(tile, before, after, num_tiles, BLOCK, SUB, RING)
    for other in range(start, stop):
        key_round, key_slots, key_valid = tile_slots(
            other, round_, length, num_tiles, num_rounds, chunk_length, BLOCK, SUB, RING
        )
        key_tokens = tile_tokens(order, key_round, key_slots, key_valid, length)
        k = load_keys(query, key, key_tokens, key_valid, query_n, key_n, HEAD)
        v = gather(value, key_tokens, key_valid, value_n, HEAD)
        key_tag = key_tags(tag, real, key_tokens, key_round, key_slots, key_valid, length, RING)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        visible = sees(
            query_tag[:, None], own_tag[:, None], key_tag[None, :], span, RING, CAUSAL, EXCLUDE_SELF
        )
        if UNION:
            count = sightings(
                place,
                tokens[:, None],
                key_tokens[None, :],
                valid[:, None],
                key_valid[None, :],
                length,
                num_rounds,
                before,
                after,
                ring,
                RING,
            )
            s -= tl.log2(count.to(tl.float32))
        s = tl.where(visible, s, -float("inf"))
        highest = tl.maximum(m, tl.max(s, axis=1))
        # Where nothing was seen yet, minus infinity must not be subtracted from itself.
        base = tl.where(highest == -float("inf"), 0.0, highest)
        p = tl.exp2(s - base[:, None])
        decay = tl.exp2(m - base)
        m = highest
        sums = sums * decay + tl.sum(p, axis=1)
        if DROPOUT:
            key_code = key_codes(key_seed, key_tokens)
            p *= keep_factors(query_code[:, None], key_code[None, :], threshold, keep_scale)
        a = tl.dot(p.to(v.dtype), v, a * decay[:, None], input_precision=PRECISION)

    if LAST:
        blind = sums == 0.0
        total = tl.where(blind, 1.0, sums)
        a = a / total[:, None]
        natural = tl.where(blind, -float("inf"), m * _LN_2 + tl.log(total))
        summed = tl.full([BLOCK], 1.0, tl.float32)
        if EXCLUDE_SELF:
            lonely = blind & valid
            times, weight = own_weight(
                place,
                tokens,
                valid,
                numbered,
                length,
                num_rounds,
                before,
                after,
                ring,
                query_seed,
                key_seed,
                threshold,
                keep_scale,
                RING,
                DROPOUT,
            )
            if UNION:
                times = times * 0.0 + 1.0
            v = gather(value, tokens, lonely, value_n, HEAD).to(tl.float32)
            a = tl.where(lonely[:, None], v * weight[:, None], a)
            natural = tl.where(lonely, tl.log(times) + _SELF_SCORE, natural)
            beyond = tl.where(lonely, natural - _SELF_SCORE, 0.0)
            summed = tl.where(lonely, times / tl.exp(beyond), 1.0)
        tl.store(out + elements, a.to(out.dtype.element_ty), mask=valid[:, None])
        tl.store(lse + line, natural, mask=valid)
        if mass is not None:
            tl.store(mass + line, summed, mask=valid)
    else:
        tl.store(state + elements, a, mask=valid[:, None])
        tl.store(lse + line, m, mask=valid)
        tl.store(mass + line, sums, mask=valid)


def forward(call: WindowedAttentionCall) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, ``lse`` and ``mass``, as :class:`~.operators.Kernels` has it."""
    launch = Launch(call)
    batch, heads, length, size = call.query.shape
    out = call.value.new_empty((batch, length, heads, size))
    lse = torch.empty((batch, heads, length), dtype=torch.float32, device=out.device)
    mass = torch.empty_like(lse) if launch.is_ring or launch.num_rounds > 1 else None
    state = torch.empty_like(out, dtype=torch.float32) if launch.num_rounds > 1 else None
    for index in range(launch.num_rounds):
        launch.run(FORWARD, forward_kernel, index, (out, state, lse, mass))
    return out.transpose(1, 2), lse, mass
