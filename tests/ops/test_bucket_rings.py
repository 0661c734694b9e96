"""Rings hold the last tokens of every bucket, however they came in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.bucket_rings import (
    EMPTY,
    BucketRings,
    append_to_rings,
    empty_rings,
    rings_from_order,
    take_back,
)
from reformer_hf.ops.decoding import same_bucket_before
from reformer_hf.ops.sorting import sort_by_bucket

BATCH, HEADS, ROUNDS, BUCKETS, WINDOW = SHAPE = 2, 3, 2, 4, 5
CPU = torch.device("cpu")


def buckets(length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, BUCKETS, (BATCH, HEADS, ROUNDS, length), generator=generator)


def made(bucket: Tensor, position: Tensor | None = None) -> BucketRings:
    return rings_from_order(sort_by_bucket(bucket), position, SHAPE)


def appended(rings: BucketRings, bucket: Tensor, start: int, block: int) -> list:
    changes = []
    for first in range(0, bucket.shape[-1], block):
        own = bucket[..., first : first + block]
        positions = torch.arange(own.shape[-1]).expand(BATCH, -1) + start + first
        earlier = same_bucket_before(own).sum(-1)
        changes.append(append_to_rings(rings, rings.ring_of(own), earlier, positions, True))
    return changes


def assert_same(rings: BucketRings, other: BucketRings) -> None:
    assert torch.equal(rings.counts, other.counts)
    assert torch.equal(rings.entries, other.entries)


@pytest.mark.parametrize("length", [1, 4, 17, 90])
def test_a_ring_holds_the_last_tokens_of_its_bucket(length: int) -> None:
    bucket = buckets(length)
    rings = made(bucket)
    for index in torch.cartesian_prod(*map(torch.arange, (BATCH, HEADS, ROUNDS, BUCKETS))):
        b, h, r, c = index.tolist()
        members = (bucket[b, h, r] == c).nonzero().flatten().tolist()
        assert rings.counts[b, h, r, c] == len(members)
        ring = rings.entries[b, h, r, c].tolist()
        assert sorted(p for p in ring if p != EMPTY) == members[-WINDOW:]
        for number, position in list(enumerate(members))[-WINDOW:]:
            assert ring[number % WINDOW] == position


@pytest.mark.parametrize("block", [1, 3, WINDOW])
def test_appending_gives_what_sorting_gives(block: int) -> None:
    bucket = buckets(60)
    rings = empty_rings(SHAPE, CPU)
    appended(rings, bucket, 0, block)
    assert_same(rings, made(bucket))
    rings = made(bucket[..., :23])
    appended(rings, bucket[..., 23:], 23, block)
    assert_same(rings, made(bucket))


def test_padding_is_in_no_ring_and_does_not_move_positions() -> None:
    bucket = buckets(40)
    real = torch.rand(BATCH, 40) < 0.6
    position = (real.cumsum(1) - 1).clamp(min=0)
    rings = made(torch.where(real[:, None, None, :], bucket, BUCKETS), position)
    for b in range(BATCH):
        order = sort_by_bucket(bucket[b : b + 1, :, :, real[b]])
        alone = rings_from_order(order, None, (1, *SHAPE[1:]))
        assert torch.equal(rings.counts[b], alone.counts[0])
        assert torch.equal(rings.entries[b], alone.entries[0])


@pytest.mark.parametrize("kept", [0, 1, 7, 30])
def test_changes_can_be_taken_back_one_token_at_a_time(kept: int) -> None:
    bucket = buckets(50)
    rings = made(bucket[..., :20])
    changes = appended(rings, bucket[..., 20:], 20, 4)
    undo = 30 - kept
    while undo:
        change = changes.pop()
        count = min(undo, change.length)
        stays, goes = change.split(change.length - count)
        take_back(rings, goes)
        undo -= count
        if stays.length:
            changes.append(stays)
    assert_same(rings, made(bucket[..., : 20 + kept]))


def test_an_order_shared_by_heads_and_rows_fills_all_rings() -> None:
    shared = torch.zeros(1, 1, 1, 9, dtype=torch.int64)
    rings = rings_from_order(sort_by_bucket(shared), None, (BATCH, HEADS, 1, 1, WINDOW))
    assert rings.entries.shape == (BATCH, HEADS, 1, 1, WINDOW)
    assert torch.equal(rings.entries[1, 2].flatten().sort().values, torch.arange(4, 9).int())
