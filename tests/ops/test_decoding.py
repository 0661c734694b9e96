"""One new token, a block of one, and a list of the tokens it sees give the same output."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.bucket_rings import rings_from_order
from reformer_hf.ops.decoding import attend_block, attend_newest, same_bucket_before
from reformer_hf.ops.sorting import sort_by_bucket
from reformer_hf.ops.stored_tokens import NewTokens, StoredTokens, gather

BATCH, HEADS, ROUNDS, BUCKETS, WINDOW, SIZE = 2, 3, 2, 4, 5, 8
PAST, PLACES = 30, 37


def problem(modulus: int | None, first: int) -> tuple[NewTokens, StoredTokens]:
    """30 tokens in buffers with a place for a few more, and one new token, which is in them too."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, PAST + 1, SIZE)
    keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    buckets = torch.randint(0, BUCKETS, (BATCH, HEADS, ROUNDS, PAST + 1), generator=generator)
    query = torch.randn((BATCH, HEADS, 1, SIZE), generator=generator, dtype=torch.float64)
    new = NewTokens(query, keys[:, :, -1:], values[:, :, -1:], buckets[..., -1:])
    places = torch.arange(PAST + 1)
    if modulus is not None:
        places = places % modulus
    buffers = []
    for x in (keys, values, buckets.transpose(2, 3)):
        buffer = x.new_zeros((BATCH, HEADS, PLACES, x.shape[-1]))
        for token, place in enumerate(places.tolist()):
            buffer[:, :, place] = x[:, :, token]
        buffers.append(buffer)
    order = sort_by_bucket(buckets[..., :PAST])
    rings = rings_from_order(order, None, (BATCH, HEADS, ROUNDS, BUCKETS, WINDOW))
    base = torch.arange(BATCH * HEADS).view(BATCH, HEADS, 1, 1) * PLACES
    return new, StoredTokens(*buffers, rings, first, modulus, base)


@pytest.mark.parametrize("count_duplicates", [True, False])
@pytest.mark.parametrize(("modulus", "first"), [(None, 0), (None, 25), (20, 15), (20, PAST)])
def test_one_token_and_a_block_of_one_see_the_same(
    modulus: int | None, first: int, count_duplicates: bool
) -> None:
    new, stored = problem(modulus, first)
    window = AttentionWindow("window", WINDOW, 0, WINDOW, True, True, count_duplicates)
    ring = stored.rings.ring_of(new.buckets)
    one = attend_newest(new, ring, stored, position=PAST, window=window)
    same = same_bucket_before(new.buckets)
    block = attend_block(new, ring, stored, same=same, window=window)
    torch.testing.assert_close(one, block)
    for b in range(BATCH):
        for h in range(HEADS):
            seen: list[int] = []
            for r in range(ROUNDS):
                found = [
                    p
                    for p in range(first, PAST)
                    if stored.buckets[b, h, p if modulus is None else p % modulus, r]
                    == new.buckets[b, h, r, 0]
                ]
                seen += found[-WINDOW:]
            seen = seen if count_duplicates else sorted(set(seen))
            index = stored.index(torch.tensor(seen, dtype=torch.int64).view(1, 1, 1, -1))
            keys, values = (gather(x, index)[b, h, 0] for x in (stored.keys, stored.values))
            weights = (keys @ new.query[b, h, 0]).softmax(0)
            expected = weights @ values if seen else new.value[b, h, 0]
            torch.testing.assert_close(one[b, h, 0], expected)
