"""What the forward and the backward kernels share: tiles of queries and keys, and who sees whom.

A program works on a tile of ``BLOCK`` slots of one row and key-value head: queries of all ``G``
heads of its group in the order of their cursors, or keys in the order of their ranks. Vectors are
gathered by number, so no sorted copy of anything is ever written.

**Visibility costs one subtraction and one comparison**: a query sees a key iff

    ``0 <= place(i) - place(j) < reach``,

which is one comparison when the difference is read as an unsigned number. Empty slots have places
that are out of reach. In the rounds a pair counts in the first that shows it: the places in earlier
rounds are compared likewise.

Scores are in base 2, ``S log2(e)``, because the hardware exponentiates in base 2. Size arguments
are named as in :mod:`~reformer_hf.ops.hybrid_attention.triton_turns`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Places of slots that hold nothing: no reach leads from or to them.
_NO_QUERY = tl.constexpr(-(1 << 30))
_NO_KEY = tl.constexpr(1 << 30)


@triton.jit
def query_slots(order, slots, stop, count, group):
    """Numbers ``g Q + q`` of queries, their heads in the group, ``q``, and which slots hold one."""
    valid = slots < stop
    if order is None:
        head = slots % group
        query = slots // group
        number = head * count + query
    else:
        number = tl.load(order + slots, mask=valid, other=0)
        head = number // count
        query = number % count
    return number, head, query, valid


@triton.jit
def key_tokens(order, ranks, valid):
    """The keys of ranks."""
    if order is None:
        return ranks
    else:
        return tl.load(order + ranks, mask=valid, other=0)


@triton.jit
def gather(x, offsets, valid, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Vectors ``[BLOCK, PADDED]`` at offsets; zeros in empty slots and beyond ``SIZE``."""
    columns = tl.arange(0, PADDED)
    mask = valid[:, None]
    if SIZE != PADDED:
        mask = mask & (columns < SIZE)[None, :]
    return tl.load(x + offsets[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def store(x, offsets, valid, tile, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """The inverse of :func:`gather`."""
    columns = tl.arange(0, PADDED)
    mask = valid[:, None]
    if SIZE != PADDED:
        mask = mask & (columns < SIZE)[None, :]
    tl.store(x + offsets[:, None] + columns[None, :], tile.to(x.dtype.element_ty), mask=mask)


@triton.jit
def query_places(place, number, query, valid, first, after, slots, r):
    """Places ``[BLOCK]`` int32 of queries in the ``r``-th of the rounds, ``slots`` numbers each."""
    if place is None:
        own = query + first + after
    else:
        own = tl.load(place + tl.cast(r, tl.int64) * slots + number, mask=valid, other=0)
    return tl.where(valid, own, _NO_QUERY)


@triton.jit
def key_places(place, tokens, valid, keys, r):
    """Places ``[BLOCK]`` int32 of keys in the ``r``-th of the rounds, ``keys`` of them each."""
    if place is None:
        own = tokens
    else:
        own = tl.load(place + tl.cast(r, tl.int64) * keys + tokens, mask=valid, other=0)
    return tl.where(valid, own, _NO_KEY)


@triton.jit
def sees(query_place, key_place, reach):
    """Which queries see which keys; the places broadcast against each other."""
    return (query_place - key_place).to(tl.uint32, bitcast=True) < reach.to(tl.uint32)


@triton.jit
def not_seen_before(
    visible, query_place, key_place, numbers, tokens, query_valid, key_valid, slots, keys, reach, r
):
    """``visible`` without the pairs that a round before the ``r``-th shows; all broadcast.

    Args:
        query_place: of all rounds, ``slots`` numbers each.
        key_place: likewise, of ``keys`` keys each.
    """
    for earlier in range(r):
        row = tl.cast(earlier, tl.int64)
        query = tl.load(query_place + row * slots + numbers, mask=query_valid, other=0)
        key = tl.load(key_place + row * keys + tokens, mask=key_valid, other=0)
        visible = visible & ~sees(query, key, reach)
    return visible


@triton.jit
def sees_sink(positions, tokens, query_valid, key_valid, local_window, CAUSAL: tl.constexpr):
    """Which queries see which sinks beyond their local window; positions and tokens broadcast."""
    distance = positions - tokens
    if not CAUSAL:
        distance = tl.abs(distance)
    return (distance >= local_window) & query_valid & key_valid


@triton.jit
def keys_of_tile(cursor, slot, stop, first, after, reach, num_keys, group, BLOCK: tl.constexpr):
    """First, and one past the last, rank of the keys that the queries from ``slot`` on may see."""
    last = tl.minimum(slot + BLOCK, stop) - 1
    if cursor is None:
        lowest = slot // group + first + after + 1
        highest = last // group + first + after + 1
    else:
        lowest = tl.load(cursor + slot)
        highest = tl.load(cursor + last)
    return tl.maximum(lowest - reach, 0), tl.minimum(highest, num_keys)


@triton.jit
def load_seen_keys(
    key,
    value,
    key_order,
    query_place,
    key_place,
    own_place,
    number,
    valid,
    rank,
    end,
    key_n,
    value_n,
    slots,
    num_keys,
    reach,
    round_,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    LOCAL: tl.constexpr,
):
    """Numbers, keys and values from a rank on, and which queries of the tile see which of them."""
    ranks = rank + tl.arange(0, BLOCK)
    key_valid = ranks < end
    tokens = key_tokens(key_order, ranks, key_valid)
    k = gather(key, tokens.to(tl.int64) * key_n, key_valid, SIZE, HEAD)
    v = gather(value, tokens.to(tl.int64) * value_n, key_valid, VALUE_SIZE, VALUE)
    own = key_places(key_place, tokens, key_valid, num_keys, round_)
    visible = sees(own_place[:, None], own[None, :], reach)
    if not LOCAL:
        visible = not_seen_before(
            visible,
            query_place,
            key_place,
            number[:, None],
            tokens[None, :],
            valid[:, None],
            key_valid[None, :],
            slots,
            num_keys,
            reach,
            round_,
        )
    return tokens, k, v, visible


@triton.jit
def load_seen_sinks(
    key,
    value,
    positions,
    valid,
    sink,
    sinks,
    key_n,
    value_n,
    local_window,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """The same of the sinks from one on, which are seen beyond the local window."""
    tokens = sink + tl.arange(0, BLOCK)
    key_valid = tokens < sinks
    k = gather(key, tokens.to(tl.int64) * key_n, key_valid, SIZE, HEAD)
    v = gather(value, tokens.to(tl.int64) * value_n, key_valid, VALUE_SIZE, VALUE)
    visible = sees_sink(
        positions[:, None],
        tokens[None, :],
        valid[:, None],
        key_valid[None, :],
        local_window,
        CAUSAL,
    )
    return tokens, k, v, visible
