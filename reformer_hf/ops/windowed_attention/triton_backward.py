"""Windowed attention, backward, in Triton.

With ``lse`` merged over the rounds, ``P = exp(S - lse)`` is the weight of a pair in any round, and

    ``dV = P^T dO``, ``dP = dO V^T``, ``dS = P * (dP - delta)``, ``delta = rowsum(dO * O)``,
    ``dQ = dS K``, ``dK = dS^T Q``,

summed over rounds. Nothing is propagated through the merge of the rounds.

Two kernels in every round, each with one program for a tile of sorted tokens. The first takes the
tile as *queries*, walks over the keys that they see and writes ``dQ``. The second takes it as
*keys* and walks over the queries that see them; shared keys, which are queries of unit length
``k = q s``, are folded into the gradient of the queries on the spot,

    ``dq += s (dk - k (k . dk))``, ``s = 1 / sqrt(|q|^2 + D eps)``.

Every row belongs to one program, so there are no atomic operations and two runs give the same bits.
Scores are formed twice for that; one kernel that did both needs more registers than there are.
Rounds are launched one after the other and add to fp32 rows in place, and the last one writes the
result in its own precision.

Tokens that saw nothing but themselves have no weight in these sums: their only gradient is that of
their own value, and the last round adds it.

Source: FlashAttention-2 (arXiv:2307.08691), algorithm 2, over gathered tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from reformer_hf.ops.attention_window import SELF_SCORE
from reformer_hf.ops.windowed_attention.call import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.triton_launch import KEYS, QUERIES, VARIABLE, Launch
from reformer_hf.ops.windowed_attention.triton_tiles import (
    gather,
    inverse_norms,
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
_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2.0))


@triton.jit
def delta_kernel(
    out,
    grad_out,
    lse,
    delta,
    base,
    grad_b,
    grad_h,
    grad_n,
    length,
    heads,
    HEAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``delta`` ``[B, H, N]``, and the ``lse`` in base 2: infinite where ``P`` must vanish."""
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // heads
    h = slice_ % heads
    tokens = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = tokens < length
    o = gather(out + (b * length * heads + h) * HEAD, tokens, valid, heads * HEAD, HEAD)
    g = gather(grad_out + b * grad_b + h * grad_h, tokens, valid, grad_n, HEAD)
    line = slice_ * length + tokens
    tl.store(delta + line, tl.sum(o.to(tl.float32) * g.to(tl.float32), axis=1), mask=valid)
    natural = tl.load(lse + line, mask=valid, other=0.0)
    alone = natural < 0.5 * _SELF_SCORE
    tl.store(base + line, tl.where(alone, float("inf"), natural * _LOG2_E), mask=valid)


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
    sum_query,
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
    """``dQ`` of a tile of queries, from the keys that they see.

    Written to ``grad_query``, or, where that is ``None``, as a sum in fp32 to ``sum_query``.
    """
    tile = tl.program_id(0)
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // heads
    h = slice_ % heads
    numbered = b * all_heads + first_head + h
    query += b * query_b + h * query_h
    if key is not None:
        key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    grad_out += b * grad_b + h * grad_h
    base += slice_ * length
    delta += slice_ * length
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
    columns = tl.arange(0, HEAD)
    rows = (b * length + tokens) * heads + h
    elements = rows[:, None] * HEAD + columns[None, :]
    q = gather(query, tokens, valid, query_n, HEAD)
    g = gather(grad_out, tokens, valid, grad_n, HEAD)
    query_base = tl.load(base + tokens, mask=valid, other=float("inf"))
    query_delta = tl.load(delta + tokens, mask=valid, other=0.0)
    query_tag, own_tag = query_tags(
        tag, real, tokens, round_, slots, valid, length, shift, RING, CAUSAL, EXCLUDE_SELF
    )
    query_code = query_codes(query_seed, numbered, round_, tokens)
    dq = tl.zeros([BLOCK, HEAD], tl.float32)
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
            query_tag[:, None],
            own_tag[:, None],
            key_tag[None, :],
            span,
            RING,
            CAUSAL,
            EXCLUDE_SELF,
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
        p = tl.exp2(tl.where(visible, s - query_base[:, None], -float("inf")))
        dp = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            key_code = key_codes(key_seed, key_tokens)
            dp *= keep_factors(query_code[:, None], key_code[None, :], threshold, keep_scale)
        ds = p * (dp - query_delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    dq *= scale * _LN_2
    if not FIRST:
        dq += tl.load(sum_query + elements, mask=valid[:, None], other=0.0)
    if grad_query is None:
        tl.store(sum_query + elements, dq, mask=valid[:, None])
    else:
        tl.store(grad_query + elements, dq.to(grad_query.dtype.element_ty), mask=valid[:, None])


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
    grad_query,
    grad_key,
    grad_value,
    sum_query,
    sum_key,
    sum_value,
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
    """``dK`` and ``dV`` of a tile of keys, from the queries that see them.

    Keys of unit length, which are made from the queries, hand ``dK`` on to ``dQ``.
    """
    tile = tl.program_id(0)
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // heads
    h = slice_ % heads
    numbered = b * all_heads + first_head + h
    query += b * query_b + h * query_h
    if key is not None:
        key += b * key_b + h * key_h
    value += b * value_b + h * value_h
    grad_out += b * grad_b + h * grad_h
    base += slice_ * length
    delta += slice_ * length
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
    columns = tl.arange(0, HEAD)
    rows = (b * length + tokens) * heads + h
    elements = rows[:, None] * HEAD + columns[None, :]
    k = load_keys(query, key, tokens, valid, query_n, key_n, HEAD)
    v = gather(value, tokens, valid, value_n, HEAD)
    key_tag = key_tags(tag, real, tokens, round_, slots, valid, length, RING)
    key_code = key_codes(key_seed, tokens)

    dk = tl.zeros([BLOCK, HEAD], tl.float32)
    dv = tl.zeros([BLOCK, HEAD], tl.float32)
    start, stop = neighbours(tile, after, before, num_tiles, BLOCK, SUB, RING)
    for other in range(start, stop):
        query_round, query_slots, query_valid = tile_slots(
            other, round_, length, num_tiles, num_rounds, chunk_length, BLOCK, SUB, RING
        )
        query_tokens = tile_tokens(order, query_round, query_slots, query_valid, length)
        q = gather(query, query_tokens, query_valid, query_n, HEAD)
        g = gather(grad_out, query_tokens, query_valid, grad_n, HEAD)
        query_base = tl.load(base + query_tokens, mask=query_valid, other=float("inf"))
        query_delta = tl.load(delta + query_tokens, mask=query_valid, other=0.0)
        query_tag, own_tag = query_tags(
            tag,
            real,
            query_tokens,
            query_round,
            query_slots,
            query_valid,
            length,
            shift,
            RING,
            CAUSAL,
            EXCLUDE_SELF,
        )
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        visible = sees(
            query_tag[None, :], own_tag[None, :], key_tag[:, None], span, RING, CAUSAL, EXCLUDE_SELF
        )
        if UNION:
            count = sightings(
                place,
                query_tokens[None, :],
                tokens[:, None],
                query_valid[None, :],
                valid[:, None],
                length,
                num_rounds,
                before,
                after,
                ring,
                RING,
            )
            s -= tl.log2(count.to(tl.float32))
        p = tl.exp2(tl.where(visible, s - query_base[None, :], -float("inf")))
        dp = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        kept = p
        if DROPOUT:
            query_code = query_codes(query_seed, numbered, query_round, query_tokens)
            keep = keep_factors(query_code[None, :], key_code[:, None], threshold, keep_scale)
            kept = p * keep
            dp *= keep
        dv = tl.dot(kept.to(g.dtype), g, dv, input_precision=PRECISION)
        ds = p * (dp - query_delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk *= scale * _LN_2

    if EXCLUDE_SELF and LAST:
        own_grad = gather(grad_out, tokens, valid, grad_n, HEAD)
        own_base = tl.load(base + tokens, mask=valid, other=0.0)
        lonely = valid & (own_base == float("inf"))
        _, weight = own_weight(
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
        weight = tl.where(lonely, weight, 0.0)
        dv += own_grad.to(tl.float32) * weight[:, None]
    if not FIRST:
        dv += tl.load(sum_value + elements, mask=valid[:, None], other=0.0)
    if LAST:
        tl.store(grad_value + elements, dv.to(grad_value.dtype.element_ty), mask=valid[:, None])
    else:
        tl.store(sum_value + elements, dv, mask=valid[:, None])
    if key is None:
        q = gather(query, tokens, valid, query_n, HEAD)
        unit = inverse_norms(q, HEAD)[:, None]
        direction = q.to(tl.float32) * unit
        dk = unit * (dk - direction * tl.sum(direction * dk, axis=1)[:, None])
        dq = dk + tl.load(sum_query + elements, mask=valid[:, None], other=0.0)
        if LAST:
            tl.store(grad_query + elements, dq.to(grad_query.dtype.element_ty), mask=valid[:, None])
        else:
            tl.store(sum_query + elements, dq, mask=valid[:, None])
    else:
        if not FIRST:
            dk += tl.load(sum_key + elements, mask=valid[:, None], other=0.0)
        if LAST:
            tl.store(grad_key + elements, dk.to(grad_key.dtype.element_ty), mask=valid[:, None])
        else:
            tl.store(sum_key + elements, dk, mask=valid[:, None])


def _wide(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


def backward(
    call: WindowedAttentionCall, grad_out: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of query, key and value, as :class:`~.operators.Kernels` has it."""
    launch = Launch(call)
    batch, heads, length, size = call.query.shape
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    strides = (grad_out.stride(0), grad_out.stride(1), grad_out.stride(2))
    delta, base = torch.empty_like(lse), torch.empty_like(lse)
    rows = launch.delta_tokens
    delta_kernel[(triton.cdiv(length, rows), batch * heads)](
        *(out.transpose(1, 2), grad_out, lse, delta, base),
        *(*strides, length, heads),
        HEAD=size,
        BLOCK=rows,
    )
    grads = [
        None if x is None else x.new_empty((batch, length, heads, size)) for x in launch.inputs
    ]
    shared, last = call.key is None, launch.num_rounds - 1
    sums = [
        None if x is None or not (last or (shared and x is grads[0])) else _wide(x) for x in grads
    ]
    for index in range(launch.num_rounds):
        finished = grads[0] if index == last and not shared else None
        common = (grad_out, base, delta, *strides)
        launch.run(QUERIES, queries_kernel, index, (*common, finished, sums[0]))
        launch.run(KEYS, keys_kernel, index, (*common, *grads, *sums))
    grad_query, grad_key, grad_value = (None if x is None else x.transpose(1, 2) for x in grads)
    if grad_query is None or grad_value is None:
        raise ValueError("`query` and `value` must be given")
    return grad_query, grad_key, grad_value
