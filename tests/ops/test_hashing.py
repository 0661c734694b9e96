from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reformer_hf.choices import HASH_FAMILIES
from reformer_hf.ops import hashing
from reformer_hf.ops.hashing import (
    HashSettings,
    angular_rotations,
    apply_projections,
    choose_num_buckets,
    draw_projections,
    factorize_buckets,
)
from reformer_hf.ops.seeds import cpu_generator

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=100)
BATCH, HEADS, LENGTH, SIZE, ROUNDS = 2, 3, 50, 8, 4


def vectors(length: int = LENGTH) -> Tensor:
    return torch.randn(BATCH, HEADS, length, SIZE)


def hashed(x: Tensor, num_buckets: Any = 8, seed: int = 5, **options: Any) -> Tensor:
    positions = options.pop("positions", None)
    how = HashSettings(**{"num_hashes": ROUNDS, **options}, seed=seed)
    _, heads, length, size = x.shape
    factors = factorize_buckets(num_buckets)
    drawn = draw_projections(how, factors, heads, size, num_positions=length)
    return apply_projections(x, drawn, positions)


def rotations_of(factors: tuple[int, ...], seed: int = 5) -> Tensor:
    return angular_rotations(HEADS, SIZE, ROUNDS, factors, cpu_generator(seed))


def dense_angular(x: Tensor, rotations: Tensor) -> Tensor:
    """``argmax([xR; -xR])`` as it is written in the paper, ``[B, H, R, N]``."""
    rotated = torch.einsum("bhnd,hdrc->bhrnc", x, rotations)
    return torch.cat((rotated, -rotated), dim=-1).argmax(dim=-1)


# ---- the angular family ----


@pytest.mark.parametrize("num_buckets", [2, 6, 8, 128])
def test_angular_is_the_argmax_over_both_signs_of_the_rotations(num_buckets):
    x = vectors()
    expected = dense_angular(x, rotations_of((num_buckets,)))
    assert torch.equal(hashed(x, num_buckets), expected)


@pytest.mark.parametrize(
    "factors", [(4, 6), (2, 2, 8), (1, 4, 1, 2)], ids=lambda f: "x".join(map(str, f))
)
def test_factors_are_hashed_apart_and_combined_by_place_value(factors):
    x = vectors()
    rotations = rotations_of(factors)
    expected, place, start = torch.zeros(BATCH, HEADS, ROUNDS, LENGTH, dtype=torch.int64), 1, 0
    for size in factors:
        if size > 1:
            part = rotations[..., start : start + size // 2]
            expected += place * dense_angular(x, part)
        place, start = place * size, start + size // 2
    assert torch.equal(hashed(x, factors), expected)


def test_equal_seeds_draw_the_rotations_that_transformers_draws():
    rotations = rotations_of((4, 6), seed=9)
    torch.manual_seed(9)
    assert torch.equal(rotations, torch.randn(HEADS, SIZE, ROUNDS, 5))


def test_angular_ignores_the_length_of_a_vector():
    x = vectors()
    scale = 0.01 + 10 * torch.rand(BATCH, HEADS, LENGTH, 1)
    assert torch.equal(hashed(x), hashed(x * scale))


def test_opposite_vectors_land_in_opposite_buckets():
    x = vectors()
    assert torch.equal((hashed(x, 8) + 4) % 8, hashed(-x, 8))


# ---- the other families ----


@pytest.mark.parametrize("width", [0.25, 1.0, 3.0])
def test_euclidean_is_the_floor_of_the_shifted_projection(width):
    x = vectors()
    generator = cpu_generator(5)
    directions = torch.randn(HEADS, SIZE, ROUNDS, generator=generator)
    offsets = torch.rand(HEADS, 1, ROUNDS, generator=generator) * width
    slots = torch.floor((torch.einsum("bhnd,hdr->bhnr", x, directions) + offsets) / width)
    expected = (slots.long() % 10).transpose(2, 3)
    assert torch.equal(hashed(x, 10, family="euclidean", bucket_width=width), expected)


def test_random_ignores_the_content_and_the_row():
    first = hashed(vectors(), family="random")
    assert torch.equal(first, hashed(vectors(), family="random"))
    assert torch.equal(first[0], first[1])


def test_random_gives_heads_rounds_and_positions_buckets_of_their_own():
    buckets = hashed(vectors(), 64, family="random")[0]
    rows = buckets.flatten(0, 1)
    agreement = (rows[:, None] == rows).float().mean(dim=-1)
    assert torch.all(agreement[~torch.eye(len(rows), dtype=torch.bool)] < 0.2)


def test_random_uses_all_buckets_evenly():
    counts = hashed(vectors(2000), 8, family="random")[0].flatten().bincount(minlength=8)
    expected = counts.sum() / 8
    assert torch.all((counts - expected).abs() < 5 * expected.sqrt())


@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_random_draws_follow_positions_so_that_padding_moves_nothing(side):
    plain = hashed(vectors(10), family="random")[0]
    start = {"left": 6, "right": 0, "middle": 0}[side]
    slots = torch.arange(10) + start
    if side == "middle":
        slots[5:] += 6
    positions = torch.zeros(BATCH, 16, dtype=torch.int64)
    positions[:, slots] = torch.arange(10)
    padded = hashed(vectors(16), family="random", positions=positions)
    assert torch.equal(padded[0][..., slots], plain)
    assert torch.equal(padded[1][..., slots], plain)


# ---- what all families share ----

CONTENT_FAMILIES = [f for f in HASH_FAMILIES if f != "random"]


@pytest.mark.parametrize("family", HASH_FAMILIES)
@pytest.mark.parametrize("num_buckets", [1, 2, 6, [4, 8], 256], ids=str)
def test_buckets_are_in_range(family, num_buckets):
    total = num_buckets if isinstance(num_buckets, int) else math.prod(num_buckets)
    x = vectors()
    x[:, :, 0] = 0.0
    x[:, :, 1] *= 1e6
    buckets = hashed(x, num_buckets, family=family)
    assert buckets.shape == (BATCH, HEADS, ROUNDS, LENGTH)
    assert buckets.dtype == torch.int64
    assert 0 <= buckets.min() <= buckets.max() < total


@pytest.mark.parametrize("family", CONTENT_FAMILIES)
def test_equal_vectors_share_all_their_buckets(family):
    x = vectors(1).expand(-1, -1, 7, -1)
    buckets = hashed(x, 64, family=family)
    assert torch.equal(buckets, buckets[..., :1].expand_as(buckets))


@pytest.mark.parametrize("family", CONTENT_FAMILIES)
def test_near_vectors_collide_more_often_than_far_ones(family):
    x = F.normalize(torch.randn(1, 1, 300, 16), dim=-1)
    other = F.normalize(torch.randn(1, 1, 300, 16), dim=-1)
    rates = []
    for mix in (0.0, 0.1, 0.3, 0.6, 1.0):
        moved = F.normalize((1 - mix) * x + mix * other, dim=-1)
        both = hashed(torch.cat((x, moved), dim=2), 16, num_hashes=32, family=family)
        rates.append((both[..., :300] == both[..., 300:]).float().mean().item())
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[1] > 1.5 * rates[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", CONTENT_FAMILIES)
def test_narrow_vectors_are_hashed_in_fp32_even_under_autocast(family, dtype):
    x = vectors(400).to(dtype)
    expected = hashed(x.float(), 64, family=family)
    assert torch.equal(hashed(x, 64, family=family), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hashed(x, 64, family=family), expected)
        assert torch.equal(hashed(x.float(), 64, family=family), expected)


@pytest.mark.parametrize("family", HASH_FAMILIES)
def test_only_the_given_generator_is_drawn_from(family, untouched_random_state):
    x = vectors()
    with untouched_random_state:
        first = hashed(x, 64, family=family, seed=1)
        torch.rand(3, generator=cpu_generator(0))
        assert torch.equal(hashed(x, 64, family=family, seed=1), first)
        assert not torch.equal(hashed(x, 64, family=family, seed=2), first)


@pytest.mark.parametrize("num_buckets", [32, [4, 8]], ids=str)
@pytest.mark.parametrize("family", CONTENT_FAMILIES)
def test_hashing_in_blocks_changes_nothing(family, num_buckets, monkeypatch):
    x = vectors(101)
    whole = hashed(x, num_buckets, family=family)
    for elements in (1, 2000):  # one token at a time, and blocks that do not divide the length
        monkeypatch.setattr(hashing, "_BLOCK_ELEMENTS", elements)
        assert torch.equal(hashed(x, num_buckets, family=family), whole)


@pytest.mark.parametrize("elements", [1, 2000, 1 << 19])
def test_a_centre_is_taken_from_all_vectors_before(elements, monkeypatch):
    x = vectors(101)
    centre = torch.randn(BATCH, HEADS, 1, SIZE)
    drawn = draw_projections(HashSettings(ROUNDS, 5), (32,), HEADS, SIZE)
    monkeypatch.setattr(hashing, "_BLOCK_ELEMENTS", elements)
    found = apply_projections(x, drawn, centre=centre)
    assert torch.equal(found, apply_projections(x - centre, drawn))
    assert not torch.equal(found, apply_projections(x, drawn))


def test_rows_heads_and_tokens_are_hashed_one_by_one():
    x = vectors()
    whole = hashed(x)
    assert torch.equal(hashed(x[1:, :, 7:9]), whole[1:, ..., 7:9])


def test_no_gradient_is_recorded():
    assert not hashed(vectors().requires_grad_()).requires_grad


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"family.*angular.*euclidean.*random.*'cosine'"):
        hashed(vectors(), family="cosine")


# ---- numbers of buckets ----


@EXAMPLES
@given(length=st.integers(0, 10**7), window=st.integers(0, 10**5))
def test_the_chosen_number_is_the_largest_power_of_two_that_fills_its_windows(length, window):
    chosen = choose_num_buckets(length, window)
    assert chosen.bit_count() == 1
    assert 2 * chosen * max(window, 1) > length
    assert chosen == 1 or chosen * max(window, 1) <= length


@EXAMPLES
@given(st.integers(1, 10**6).map(lambda n: 2 * n) | st.integers(0, 40).map(lambda n: 1 << n))
def test_factors_multiply_to_the_number_and_can_be_hashed(num_buckets):
    factors = factorize_buckets(num_buckets)
    assert math.prod(factors) == num_buckets
    assert all(b == 1 or b % 2 == 0 for b in factors)
    if num_buckets.bit_count() == 1 and num_buckets > 128:
        assert len(factors) == 2
        assert factors[0] <= factors[1] <= 2 * factors[0]
    else:
        assert factors == (num_buckets,)


@pytest.mark.parametrize("factors", [[4, 8], (512,), [2, 2, 2]], ids=["4x8", "512", "2x2x2"])
def test_explicit_factors_are_kept_even_a_single_one(factors):
    assert factorize_buckets(factors) == tuple(factors)


@pytest.mark.parametrize("num_buckets", [0, -2, 3, [4, 3], [], [4, 0]], ids=str)
def test_a_number_that_cannot_be_hashed_is_refused_by_name(num_buckets):
    with pytest.raises(ValueError, match="num_buckets"):
        factorize_buckets(num_buckets)
    with pytest.raises(ValueError, match="num_buckets"):
        hashed(vectors(), num_buckets)
