from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_hf.ops.sorting import (
    identity_order,
    invert_permutation,
    sort_by_bucket,
    spaced_rank,
)

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=100)
BUCKETS = st.lists(st.integers(min_value=0, max_value=5), min_size=1, max_size=40)


def random_buckets(length: int, num_buckets: int = 4) -> torch.Tensor:
    return torch.randint(0, num_buckets, (2, 3, 2, length))


@EXAMPLES
@given(BUCKETS)
def test_tokens_are_sorted_by_bucket_and_then_by_position(buckets):
    order = sort_by_bucket(torch.tensor(buckets).view(1, 1, 1, -1)).order.flatten().tolist()
    assert order == sorted(range(len(buckets)), key=lambda i: (buckets[i], i))


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
def test_order_is_a_permutation_and_rank_its_inverse(length):
    sorted_tokens = sort_by_bucket(random_buckets(length))
    slots = torch.arange(length).expand_as(sorted_tokens.order)
    assert torch.equal(sorted_tokens.order.sort(dim=-1).values, slots)
    assert torch.equal(sorted_tokens.order.gather(-1, sorted_tokens.rank), slots)
    assert torch.equal(sorted_tokens.rank.gather(-1, sorted_tokens.order), slots)


def test_every_row_head_and_round_is_sorted_by_itself():
    buckets = random_buckets(20)
    whole = sort_by_bucket(buckets)
    one = sort_by_bucket(buckets[1:, 2:, 1:])
    assert torch.equal(whole.order[1, 2, 1], one.order[0, 0, 0])
    assert whole.num_hashes == 2


def test_the_sentinel_bucket_sorts_last():
    buckets = random_buckets(30)
    is_padding = torch.rand(buckets.shape) < 0.3
    order = sort_by_bucket(torch.where(is_padding, 4, buckets)).order
    sorted_padding = is_padding.gather(-1, order).int()
    assert torch.equal(sorted_padding, sorted_padding.sort(dim=-1).values)


def test_sorting_leaves_the_buckets_as_they_are():
    buckets = random_buckets(30)
    before = buckets.clone()
    assert sort_by_bucket(buckets).bucket is buckets
    assert torch.equal(buckets, before)


def test_keys_beyond_32_bits_sort_correctly():
    length = 1000
    buckets = torch.full((1, 1, 1, length), 2**40)
    buckets[..., 1::2] = 0
    order = sort_by_bucket(buckets).order.flatten()
    expected = torch.cat((torch.arange(1, length, 2), torch.arange(0, length, 2)))
    assert torch.equal(order, expected)


def test_the_identity_order_is_one_round_of_one_bucket():
    order = identity_order(5, torch.device("cpu"))
    assert order.num_hashes == 1
    assert order.order.flatten().tolist() == order.rank.flatten().tolist() == [0, 1, 2, 3, 4]
    assert order.bucket.flatten().tolist() == [0] * 5


@EXAMPLES
@given(st.permutations(list(range(9))))
def test_inverting_twice_gives_the_permutation_back(permutation):
    order = torch.tensor(permutation)
    inverse = invert_permutation(order)
    assert inverse[order].tolist() == list(range(9))
    assert torch.equal(invert_permutation(inverse), order)


@EXAMPLES
@given(
    buckets=BUCKETS,
    before=st.integers(min_value=0, max_value=12),
    after=st.integers(min_value=0, max_value=12),
    slack=st.integers(min_value=0, max_value=3),
)
def test_same_bucket_and_near_is_one_comparison_of_spaced_ranks(buckets, before, after, slack):
    order = sort_by_bucket(torch.tensor(buckets).view(1, 1, 1, -1))
    spaced = spaced_rank(order, max(before, after) + slack).flatten()
    rank, bucket = order.rank.flatten(), order.bucket.flatten()
    distance = rank[:, None] - rank
    same_bucket = bucket[:, None] == bucket
    expected = same_bucket & (distance <= before) & (distance >= -after)
    difference = spaced[:, None] - spaced
    assert torch.equal((difference <= before) & (difference >= -after), expected)
