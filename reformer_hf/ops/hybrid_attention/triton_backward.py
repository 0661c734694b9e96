"""Hybrid attention, backward, in Triton.

With ``lse`` merged over all turns, ``P = exp(S - lse)`` is the weight of a pair in any of them, and

    ``dV = P^T dO``, ``dP = dO V^T``, ``dS = P * (dP - delta)``, ``delta = rowsum(dO * O)``,
    ``dQ = dS K``, ``dK = dS^T Q``,

summed over turns. Nothing is propagated through the merge.

Two kernels in every turn. The first has one program for a tile of *queries*, walks over the keys
that they see and adds to ``dQ``. The second has one for a tile of *keys* and walks over the queries
of all heads of the group that see them. Every row belongs to one program, so there are no atomic
operations and two runs give the same bits. Scores are formed twice for that.

All queries see the sinks, and one program would walk over all of them: their gradients are summed
in chunks of the queries, and the chunks are added up at the end.

Source: FlashAttention-2 (arXiv:2307.08691), algorithm 2, over gathered tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import Gradients, HybridCall, backward_by_row
from reformer_hf.ops.hybrid_attention.triton_tiles import (
    gather,
    key_places,
    key_tokens,
    keys_of_tile,
    load_seen_keys,
    load_seen_sinks,
    not_seen_before,
    query_places,
    query_slots,
    sees,
    sees_sink,
    store,
)
from reformer_hf.ops.hybrid_attention.triton_turns import (
    KEYS,
    QUERIES,
    SINK_CHUNK,
    VARIABLE,
    Launch,
    turns,
)
from reformer_hf.ops.windowed_attention.triton_tiles import keep_factors, key_codes, query_codes

_LN_2 = tl.constexpr(math.log(2.0))
_SINK_CHUNK = tl.constexpr(SINK_CHUNK)


@triton.jit
def _query_gradient(
    dq,
    q,
    g,
    k,
    v,
    base,
    delta,
    visible,
    query_code,
    tokens,
    scale,
    key_seed,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``dQ`` after one more tile of keys."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    p = tl.exp2(tl.where(visible, s - base[:, None], -float("inf")))
    dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
    if DROPOUT:
        key_code = key_codes(key_seed, tokens)
        dp *= keep_factors(query_code[:, None], key_code[None, :], threshold, keep_scale)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=VARIABLE)
def queries_kernel(
    query,
    key,
    value,
    grad_out,
    base,
    delta,
    grad_b,
    grad_h,
    grad_n,
    grad_query,
    query_order,
    cursor,
    key_order,
    query_place,
    key_place,
    query_b,
    query_h,
    query_n,
    key_b,
    key_h,
    key_n,
    value_b,
    value_h,
    value_n,
    groups,
    group,
    queries,
    length,
    sinks,
    count,
    first,
    start,
    num_keys,
    reach,
    after,
    local_window,
    scale,
    query_seed,
    key_seed,
    threshold,
    keep_scale,
    first_row,
    first_head,
    all_heads,
    round_,
    rounds,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOCAL: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to ``dQ``, in fp32, what a tile of queries has from the keys that it sees."""
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // groups
    h = slice_ % groups
    heads = groups * group
    query += b * query_b
    grad_out += b * grad_b
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    slots = group * count
    if not LOCAL:
        line = slice_ * rounds + round_
        query_order += line * slots
        cursor += line * slots
        key_order += line * num_keys
        query_place += slice_ * rounds * slots
        key_place += slice_ * rounds * num_keys

    slot = tl.program_id(0) * BLOCK
    number, head, place_in_turn, valid = query_slots(
        query_order, slot + tl.arange(0, BLOCK), slots, count, group
    )
    head = h * group + head
    m_query = (place_in_turn + start).to(tl.int64)
    q = gather(query, head * query_h + m_query * query_n, valid, SIZE, HEAD)
    g = gather(grad_out, head * grad_h + m_query * grad_n, valid, VALUE_SIZE, VALUE)
    own_place = query_places(query_place, number, place_in_turn, valid, first, after, slots, round_)
    query_code = query_codes(
        query_seed, (b + first_row) * all_heads + first_head + head, 0, place_in_turn + first
    )
    line = (b * heads + head) * queries + m_query
    own_base = tl.load(base + line, mask=valid, other=float("inf"))
    own_delta = tl.load(delta + line, mask=valid, other=0.0)
    dq = tl.zeros([BLOCK, HEAD], tl.float32)

    begin, end = keys_of_tile(cursor, slot, slots, first, after, reach, num_keys, group, BLOCK)
    for rank in range(begin, end, BLOCK):
        tokens, k, v, visible = load_seen_keys(
            key, value, key_order, query_place, key_place, own_place, number, valid, rank, end,
            key_n, value_n, slots, num_keys, reach, round_,
            SIZE, VALUE_SIZE, HEAD, VALUE, BLOCK, LOCAL,
        )  # fmt: skip
        dq = _query_gradient(
            dq, q, g, k, v, own_base, own_delta, visible, query_code, tokens,
            scale, key_seed, threshold, keep_scale, DROPOUT, PRECISION,
        )  # fmt: skip
    if LOCAL:
        for sink in range(0, sinks, BLOCK):
            tokens, k, v, visible = load_seen_sinks(
                key, value, place_in_turn + first, valid, sink, sinks, key_n, value_n,
                local_window, SIZE, VALUE_SIZE, HEAD, VALUE, BLOCK, CAUSAL,
            )  # fmt: skip
            dq = _query_gradient(
                dq, q, g, k, v, own_base, own_delta, visible, query_code, tokens,
                scale, key_seed, threshold, keep_scale, DROPOUT, PRECISION,
            )  # fmt: skip
    dq *= scale * _LN_2
    elements = ((b * queries + m_query) * heads + head) * SIZE
    if not LOCAL:
        dq += gather(grad_query, elements, valid, SIZE, HEAD)
    store(grad_query, elements, valid, dq, SIZE, HEAD)


@triton.jit(do_not_specialize=VARIABLE)
def keys_kernel(
    query,
    key,
    value,
    grad_out,
    base,
    delta,
    grad_b,
    grad_h,
    grad_n,
    grad_key,
    grad_value,
    queries_of_keys,
    query_order,
    cursor,
    key_order,
    query_place,
    key_place,
    query_b,
    query_h,
    query_n,
    key_b,
    key_h,
    key_n,
    value_b,
    value_h,
    value_n,
    groups,
    group,
    queries,
    length,
    sinks,
    count,
    first,
    start,
    num_keys,
    reach,
    after,
    local_window,
    scale,
    query_seed,
    key_seed,
    threshold,
    keep_scale,
    first_row,
    first_head,
    all_heads,
    round_,
    rounds,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOCAL: tl.constexpr,
    CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Add to ``dK`` and ``dV``, in fp32, what a tile of keys has from the queries that see it.

    With ``SINKS`` the tile holds sinks, the queries are those of a chunk, and the sums, ``[chunks,
    B Hkv, sinks, ..]``, are written.
    """
    tile = tl.program_id(0)
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // groups
    h = slice_ % groups
    heads = groups * group
    query += b * query_b
    grad_out += b * grad_b
    key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    slots = group * count
    if not LOCAL:
        line = slice_ * rounds + round_
        query_order += line * slots
        key_order += line * num_keys
        query_place += slice_ * rounds * slots
        key_place += slice_ * rounds * num_keys
        bounds = queries_of_keys + (line * tl.num_programs(0) + tile) * 2

    if SINKS:
        ranks = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        key_valid = ranks < sinks
        begin = tile * _SINK_CHUNK
        end = tl.minimum(begin + _SINK_CHUNK, slots)
    else:
        ranks = tile * BLOCK + tl.arange(0, BLOCK)
        key_valid = ranks < num_keys
        if LOCAL:
            # Query i sees key j of its local window iff 0 <= i + after - j < reach.
            begin = tl.maximum(tile * BLOCK - after - first, 0) * group
            end = tl.minimum(tile * BLOCK + BLOCK - 1 - after + reach - first, count) * group
        else:
            begin = tl.load(bounds)
            end = tl.load(bounds + 1)
    tokens = key_tokens(key_order, ranks, key_valid)
    k = gather(key, tokens.to(tl.int64) * key_n, key_valid, SIZE, HEAD)
    v = gather(value, tokens.to(tl.int64) * value_n, key_valid, VALUE_SIZE, VALUE)
    own = key_places(key_place, tokens, key_valid, num_keys, round_)
    key_code = key_codes(key_seed, tokens)

    dk = tl.zeros([BLOCK, HEAD], tl.float32)
    dv = tl.zeros([BLOCK, VALUE], tl.float32)
    for slot in range(begin, end, BLOCK):
        number, head, place_in_turn, valid = query_slots(
            query_order, slot + tl.arange(0, BLOCK), end, count, group
        )
        head = h * group + head
        m_query = (place_in_turn + start).to(tl.int64)
        q = gather(query, head * query_h + m_query * query_n, valid, SIZE, HEAD)
        g = gather(grad_out, head * grad_h + m_query * grad_n, valid, VALUE_SIZE, VALUE)
        at = (b * heads + head) * queries + m_query
        query_base = tl.load(base + at, mask=valid, other=float("inf"))
        query_delta = tl.load(delta + at, mask=valid, other=0.0)
        if SINKS:
            visible = sees_sink(
                (place_in_turn + first)[None, :],
                tokens[:, None],
                valid[None, :],
                key_valid[:, None],
                local_window,
                CAUSAL,
            )
        else:
            places = query_places(
                query_place, number, place_in_turn, valid, first, after, slots, round_
            )
            visible = sees(places[None, :], own[:, None], reach)
            if not LOCAL:
                visible = not_seen_before(
                    visible,
                    query_place,
                    key_place,
                    number[None, :],
                    tokens[:, None],
                    valid[None, :],
                    key_valid[:, None],
                    slots,
                    num_keys,
                    reach,
                    round_,
                )
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        p = tl.exp2(tl.where(visible, s - query_base[None, :], -float("inf")))
        dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        kept = p
        if DROPOUT:
            position = place_in_turn + first
            query_code = query_codes(
                query_seed, (b + first_row) * all_heads + first_head + head, 0, position
            )
            keep = keep_factors(query_code[None, :], key_code[:, None], threshold, keep_scale)
            kept = p * keep
            dp *= keep
        dv = tl.dot(kept.to(g.dtype), g, dv, input_precision=PRECISION)
        ds = p * (dp - query_delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk *= scale * _LN_2
    if SINKS:
        rows = (tile * tl.num_programs(1) + slice_) * sinks + ranks
    else:
        rows = (b * length + tokens) * groups + h
    if not LOCAL:
        dk += gather(grad_key, rows * SIZE, key_valid, SIZE, HEAD)
        dv += gather(grad_value, rows * VALUE_SIZE, key_valid, VALUE_SIZE, VALUE)
    store(grad_key, rows * SIZE, key_valid, dk, SIZE, HEAD)
    store(grad_value, rows * VALUE_SIZE, key_valid, dv, VALUE_SIZE, VALUE)


def _sums(x: Tensor) -> Tensor:
    """``[B, N, H, D]`` in fp32."""
    batch, heads, length, size = x.shape
    return x.new_empty((batch, length, heads, size), dtype=torch.float32)


def _backward(call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor) -> Gradients:
    """Gradients of a call without padding."""
    launch = Launch(call)
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    delta = (out.float() * grad_out.float()).sum(dim=-1).contiguous()
    base = lse.contiguous() * math.log2(math.e)
    query, key, value = (_sums(x) for x in (call.query, call.key, call.value))
    read = (grad_out, base, delta, *(grad_out.stride(i) for i in range(3)))
    for turn in turns(call):
        launch.run(QUERIES, queries_kernel, turn, (*read, query))
        bounds = turn.queries_of_keys(launch.tiling(KEYS, turn).block)
        launch.run(KEYS, keys_kernel, turn, (*read, key, value, bounds))
        if turn.is_local and launch.sinks:
            parts = launch.sink_sums()
            launch.run(KEYS, keys_kernel, turn, (*read, *parts, None), sinks=True)
            for total, part in zip((key, value), parts, strict=True):
                own = part.sum(dim=0).unflatten(0, (total.shape[0], total.shape[2]))
                total[:, : launch.sinks] += own.transpose(1, 2)
    query, key, value = (x.to(call.query.dtype).transpose(1, 2) for x in (query, key, value))
    return query, key, value


def backward(call: HybridCall, grad_out: Tensor, out: Tensor, lse: Tensor) -> Gradients:
    """Gradients of query, key and value, as :class:`~.operators.Kernels` has it."""
    return backward_by_row(call, grad_out, out, lse, _backward)
