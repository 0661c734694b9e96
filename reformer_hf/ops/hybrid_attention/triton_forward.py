"""Hybrid attention, forward, in Triton.

One program computes the output of one tile of queries in one turn. It holds the tile's queries and
walks over the keys between the first and the last place of them, with the usual running maximum
``m``, sum ``l`` and weighted sum of values ``a``:

    ``m' = max(m, max_j S_ij)``, ``l' = l 2^(m - m') + sum_j P_ij``, ``a' = a 2^(m - m') + P V``,
    ``P = 2^(S - m')``.

**Turns** are launched one after the other, and each starts from the ``m``, ``l``, ``a`` that those
before left: within a turn every query has exactly one program, so this needs no atomic operation
and gives the same bits every time. At the end ``o = a / l`` and ``lse = m + log l``.

Source: FlashAttention-2 (arXiv:2307.08691), algorithm 1, over gathered tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from reformer_hf.ops.hybrid_attention.call import HybridCall, empty_output, forward_by_row
from reformer_hf.ops.hybrid_attention.triton_tiles import (
    gather,
    keys_of_tile,
    load_seen_keys,
    load_seen_sinks,
    query_places,
    query_slots,
    store,
)
from reformer_hf.ops.hybrid_attention.triton_turns import FORWARD, VARIABLE, Launch, turns
from reformer_hf.ops.windowed_attention.triton_tiles import keep_factors, key_codes, query_codes


@triton.jit
def _take_in(
    m,
    sums,
    a,
    q,
    k,
    v,
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
    """The running softmax after one more tile of keys."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    s = tl.where(visible, s, -float("inf"))
    highest = tl.maximum(m, tl.max(s, axis=1))
    # Where nothing was seen yet, minus infinity must not be subtracted from itself.
    base = tl.where(highest == -float("inf"), 0.0, highest)
    p = tl.exp2(s - base[:, None])
    decay = tl.exp2(m - base)
    sums = sums * decay + tl.sum(p, axis=1)
    if DROPOUT:
        key_code = key_codes(key_seed, tokens)
        p *= keep_factors(query_code[:, None], key_code[None, :], threshold, keep_scale)
    a = tl.dot(p.to(v.dtype), v, a * decay[:, None], input_precision=PRECISION)
    return highest, sums, a


@triton.jit(do_not_specialize=VARIABLE)
def forward_kernel(
    query,
    key,
    value,
    state,
    highest,
    total,
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
    """``scale`` includes ``log2(e)``; see :class:`~.triton_turns.Launch` for the arguments."""
    slice_ = tl.program_id(1).to(tl.int64)
    b = slice_ // groups
    h = slice_ % groups
    heads = groups * group
    query += b * query_b
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
    own_place = query_places(query_place, number, place_in_turn, valid, first, after, slots, round_)
    query_code = query_codes(
        query_seed, (b + first_row) * all_heads + first_head + head, 0, place_in_turn + first
    )

    line = (b * heads + head) * queries + m_query
    elements = ((b * queries + m_query) * heads + head) * VALUE_SIZE
    if LOCAL:
        m = tl.full([BLOCK], -float("inf"), tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        a = tl.zeros([BLOCK, VALUE], tl.float32)
    else:
        m = tl.load(highest + line, mask=valid, other=-float("inf"))
        sums = tl.load(total + line, mask=valid, other=0.0)
        a = gather(state, elements, valid, VALUE_SIZE, VALUE)

    begin, end = keys_of_tile(cursor, slot, slots, first, after, reach, num_keys, group, BLOCK)
    for rank in range(begin, end, BLOCK):
        tokens, k, v, visible = load_seen_keys(
            key, value, key_order, query_place, key_place, own_place, number, valid, rank, end,
            key_n, value_n, slots, num_keys, reach, round_,
            SIZE, VALUE_SIZE, HEAD, VALUE, BLOCK, LOCAL,
        )  # fmt: skip
        m, sums, a = _take_in(
            m, sums, a, q, k, v, visible, query_code, tokens,
            scale, key_seed, threshold, keep_scale, DROPOUT, PRECISION,
        )  # fmt: skip
    if LOCAL:
        for sink in range(0, sinks, BLOCK):
            tokens, k, v, visible = load_seen_sinks(
                key, value, place_in_turn + first, valid, sink, sinks, key_n, value_n,
                local_window, SIZE, VALUE_SIZE, HEAD, VALUE, BLOCK, CAUSAL,
            )  # fmt: skip
            m, sums, a = _take_in(
                m, sums, a, q, k, v, visible, query_code, tokens,
                scale, key_seed, threshold, keep_scale, DROPOUT, PRECISION,
            )  # fmt: skip
    store(state, elements, valid, a, VALUE_SIZE, VALUE)
    tl.store(highest + line, m, mask=valid)
    tl.store(total + line, sums, mask=valid)


def _forward(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output and ``lse`` of a call without padding."""
    launch = Launch(call)
    batch, heads, queries, _ = call.query.shape
    out = empty_output(call.query, call.value)
    shape = (batch, queries, heads, call.value.shape[3])
    # Where the output is in fp32 already, the sums stand in its place.
    narrow = out.dtype != torch.float32
    state = out.new_empty(shape, dtype=torch.float32) if narrow else out.transpose(1, 2)
    highest = out.new_empty(call.query.shape[:3], dtype=torch.float32)
    total = torch.empty_like(highest)
    for turn in turns(call):
        launch.run(FORWARD, forward_kernel, turn, (state, highest, total))
    torch.div(state, total.transpose(1, 2).unsqueeze(-1), out=out.transpose(1, 2))
    return out, total.log_().add_(highest, alpha=math.log(2.0))


def forward(call: HybridCall) -> tuple[Tensor, Tensor]:
    """Output and ``lse``, as :class:`~.operators.Kernels` has it."""
    return forward_by_row(call, _forward)
