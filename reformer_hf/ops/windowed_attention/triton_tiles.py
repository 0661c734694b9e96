"""What the forward and the backward kernels share: tiles of sorted tokens, and who sees whom.

A program works on *tiles* of ``BLOCK`` consecutive sorted slots of one row and head. It reads the
tokens of a tile from the sorted order and gathers their vectors by row number, so no sorted copy of
anything is ever written.

* ``window`` pattern: the tiles of a round stand in a line. Their size changes no result.
* ``chunk`` pattern (``RING``): a chunk is cut into ``SUB`` tiles, the last of which may be short,
  and the tiles of all rounds form one ring.

**Visibility costs one subtraction and one comparison** (in the ring: one comparison). Every slot
has a *tag*. In a window it is its rank, with a gap wider than the window between buckets, and

    ``i`` sees ``j``  iff  ``0 <= tag(i) + ahead - tag(j) < span``,

which is one comparison when the difference is read as an unsigned number. In the ring the tag of a
key is its position and that of a query is the first position that it does not see, both unsigned;
padding and empty slots have tags that are out of reach.

**A token that may see itself only if it sees nothing else** (``EXCLUDE_SELF``) is simply invisible
to itself while scores are formed: in a causal call that moves ``span`` by one and costs nothing.
Only when all rounds are done is a row that saw nothing given its own value.

Scores are in base 2, ``S log2(e)``, because the hardware exponentiates in base 2.

Size arguments are named as in :mod:`~reformer_hf.ops.windowed_attention.triton_launch`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reformer_hf.ops.shared_keys import KEY_NORM_EPS
from reformer_hf.ops.windowed_attention import dropout

# Tags of slots that hold no token: no window reaches from or to them.
_NO_QUERY = tl.constexpr(-(1 << 30))
_NO_KEY = tl.constexpr(1 << 30)
_KEY_NORM_EPS = tl.constexpr(KEY_NORM_EPS)
_M1 = tl.constexpr(dropout._M1)
_M2 = tl.constexpr(dropout._M2)


# ---- tiles ----


@triton.jit
def neighbours(
    tile, behind, ahead, num_tiles, BLOCK: tl.constexpr, SUB: tl.constexpr, RING: tl.constexpr
):
    """First, and one past the last, of the tiles that a tile may see or be seen by.

    ``behind`` and ``ahead`` are slots of a window or chunks of a ring. Tiles of a ring are not yet
    wrapped around.
    """
    if RING:
        chunk = tile // SUB
        first = (chunk - behind) * SUB
        stop = (chunk + ahead + 1) * SUB
    else:
        first = tl.maximum(tile * BLOCK - behind, 0) // BLOCK
        stop = tl.minimum((tile * BLOCK + BLOCK - 1 + ahead) // BLOCK + 1, num_tiles)
    return first, stop


@triton.jit
def tile_slots(
    tile,
    round_,
    length,
    num_tiles,
    num_rounds,
    chunk_length,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    RING: tl.constexpr,
):
    """Round of a tile, its slots ``[BLOCK]`` and whether they hold tokens ``[BLOCK]``."""
    lane = tl.arange(0, BLOCK)
    if RING:
        ring = num_rounds * num_tiles
        tile = (tile % ring + ring) % ring
        round_ = tile // num_tiles
        tile = tile % num_tiles
        offset = (tile % SUB) * BLOCK + lane
        slots = (tile // SUB) * chunk_length + offset
        valid = (offset < chunk_length) & (slots < length)
    else:
        slots = tile * BLOCK + lane
        valid = slots < length
    return round_, slots, valid


@triton.jit
def tile_tokens(order, round_, slots, valid, length):
    """The tokens ``[BLOCK]`` int64 in the slots of a tile."""
    if order is None:
        return slots.to(tl.int64)
    else:  # without it, Triton would compile what follows all the same
        line = tl.cast(round_, tl.int64) * length
        return tl.load(order + line + slots, mask=valid, other=0)


@triton.jit
def gather(x, tokens, valid, stride, HEAD: tl.constexpr):
    """Rows ``[BLOCK, HEAD]`` of a row and head; zeros where there is no token."""
    columns = tl.arange(0, HEAD)
    return tl.load(x + tokens[:, None] * stride + columns[None, :], mask=valid[:, None], other=0.0)


@triton.jit
def inverse_norms(rows, HEAD: tl.constexpr):
    """``1 / sqrt(|q|^2 + D eps)`` of rows ``[BLOCK, HEAD]``, in fp32."""
    wide = rows.to(tl.float32)
    return tl.rsqrt(tl.sum(wide * wide, axis=1) + HEAD * _KEY_NORM_EPS)


@triton.jit
def load_keys(query, key, tokens, valid, query_stride, key_stride, HEAD: tl.constexpr):
    """Keys ``[BLOCK, HEAD]``: given ones, or queries of unit length."""
    if key is None:
        rows = gather(query, tokens, valid, query_stride, HEAD)
        return (rows.to(tl.float32) * inverse_norms(rows, HEAD)[:, None]).to(rows.dtype)
    else:
        return gather(key, tokens, valid, key_stride, HEAD)


# ---- visibility ----


@triton.jit
def key_tags(tag, real, tokens, round_, slots, valid, length, RING: tl.constexpr):
    """Tags ``[BLOCK]`` int32 of keys."""
    if RING:
        if real is not None:
            valid = valid & (tl.load(real + tokens, mask=valid, other=0) != 0)
        return tl.where(valid, tokens.to(tl.int32), -1)
    else:
        if tag is None:
            own = slots
        else:
            own = tl.load(tag + tl.cast(round_, tl.int64) * length + slots, mask=valid, other=0)
        return tl.where(valid, own, _NO_KEY)


@triton.jit
def query_tags(
    tag,
    real,
    tokens,
    round_,
    slots,
    valid,
    length,
    shift,
    RING: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
):
    """Tags ``[BLOCK]`` int32 of queries, and the tag that a query has as a key."""
    if RING:
        own = tokens.to(tl.int32)
        if real is not None:
            valid = valid & (tl.load(real + tokens, mask=valid, other=0) != 0)
        if CAUSAL:
            limit = own if EXCLUDE_SELF else own + 1
        else:
            limit = tl.zeros_like(own) + length
        return tl.where(valid, limit, 0), own
    else:
        if tag is None:
            own = slots
        else:
            own = tl.load(tag + tl.cast(round_, tl.int64) * length + slots, mask=valid, other=0)
        return tl.where(valid, own + shift, _NO_QUERY), own


@triton.jit
def sees(
    query_tag,
    own_tag,
    key_tag,
    span,
    RING: tl.constexpr,
    CAUSAL: tl.constexpr,
    EXCLUDE_SELF: tl.constexpr,
):
    """Which queries see which keys; the tags broadcast against each other."""
    if RING:
        visible = key_tag.to(tl.uint32, bitcast=True) < query_tag.to(tl.uint32, bitcast=True)
    else:
        visible = (query_tag - key_tag).to(tl.uint32, bitcast=True) < span.to(tl.uint32)
    if EXCLUDE_SELF and not CAUSAL:
        visible = visible & (own_tag != key_tag)
    return visible


@triton.jit
def _meetings(query_place, key_place, before, after, ring):
    """How many of the chunks that a chunk sees are a given one; more than one in a short ring."""
    step = query_place - key_place + after
    step = (step % ring + ring) % ring
    # Integer division rounds towards zero here, so negative numbers are kept out of it.
    return tl.where(step <= before + after, tl.maximum(before + after - step, 0) // ring + 1, 0)


@triton.jit
def sightings(
    place,
    query_tokens,
    key_tokens,
    query_valid,
    key_valid,
    length,
    num_rounds,
    before,
    after,
    ring,
    RING: tl.constexpr,
):
    """How often queries meet keys over all rounds, at least 1; tokens broadcast.

    Args:
        place: ``[R, N]`` int32, where a token stands in each round: its tag in a window, the number
            of its chunk around the ring.
    """
    count = (query_valid & key_valid).to(tl.int32) * 0
    for r in range(num_rounds):
        query = tl.load(place + tl.cast(r, tl.int64) * length + query_tokens, query_valid, 0)
        if RING:
            for other in range(num_rounds):
                line = place + tl.cast(other, tl.int64) * length
                key = tl.load(line + key_tokens, key_valid, 0)
                count += _meetings(query, key, before, after, ring)
        else:
            key = tl.load(place + tl.cast(r, tl.int64) * length + key_tokens, key_valid, 0)
            distance = query - key
            count += ((distance <= before) & (distance >= -after)).to(tl.int32)
    return tl.maximum(count, 1)


# ---- dropout: bit for bit what dropout.py computes ----


@triton.jit
def _mix(x):
    x = x ^ (x >> 16)
    x = x * _M1
    x = x ^ (x >> 15)
    x = x * _M2
    return x ^ (x >> 16)


@triton.jit
def query_codes(seed, numbered, round_, tokens):
    """See :func:`~reformer_hf.ops.windowed_attention.dropout.query_codes`."""
    code = _mix((seed ^ numbered.to(tl.int32)) * _M1 + round_)
    return _mix(code * _M1 + tokens.to(tl.int32))


@triton.jit
def key_codes(seed, tokens):
    """See :func:`~reformer_hf.ops.windowed_attention.dropout.key_codes`."""
    return _mix(seed ^ (tokens.to(tl.int32) * _M2))


@triton.jit
def keep_factors(query_code, key_code, threshold, keep_scale):
    """What dropout multiplies weights by: ``1 / (1 - p)`` or 0."""
    return tl.where(_mix(query_code ^ key_code) >= threshold, keep_scale, 0.0)


# ---- tokens that see only themselves ----


@triton.jit
def own_weight(
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
    RING: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """How often tokens meet themselves, and the weight of their own values after dropout.

    All these meetings have the same score, so each weighs the same; what dropout takes differs from
    round to round.
    """
    kept = tl.zeros_like(tokens).to(tl.float32)
    times = tl.zeros_like(tokens).to(tl.float32)
    for r in range(num_rounds):
        if RING:
            own = tl.load(place + tl.cast(r, tl.int64) * length + tokens, valid, 0)
            met = tl.zeros_like(own)
            for other in range(num_rounds):
                line = place + tl.cast(other, tl.int64) * length
                met += _meetings(own, tl.load(line + tokens, valid, 0), before, after, ring)
            count = met.to(tl.float32)
        else:
            count = times * 0.0 + 1.0
        times += count
        if DROPOUT:
            query_code = query_codes(query_seed, numbered, r, tokens)
            kept += count * keep_factors(
                query_code, key_codes(key_seed, tokens), threshold, keep_scale
            )
        else:
            kept += count
    return times, kept / times
