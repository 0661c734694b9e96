"""The counting sort finds the very order that PyTorch's sort finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reformer_hf.ops import sorting
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.lsh_attention import lsh_attention
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.sorting import sort_by_bucket

pytest.importorskip("triton")
from reformer_hf.ops import triton_sort

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPAN = triton_sort._SPAN
# None, fewer than one span, whole spans and one token less or more, several spans.
LENGTHS = [0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000]


@pytest.fixture(autouse=True)
def _short_spans_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sort within a span takes seconds for 1,024 tokens."""
    if DEVICE == "cpu":
        monkeypatch.setattr(triton_sort, "_SPAN", 32)


def assert_sorted_alike(buckets: Tensor, num_buckets: int) -> None:
    """The same as without the number of buckets, which leaves the sort to PyTorch."""
    expected = sort_by_bucket(buckets)
    assert triton_sort.fits(buckets, num_buckets)
    order, rank = triton_sort.sort_tokens(buckets.to(DEVICE), num_buckets)
    assert order.dtype == rank.dtype == torch.int64
    assert torch.equal(order.cpu(), expected.order)
    assert torch.equal(rank.cpu(), expected.rank)


@pytest.mark.parametrize("length", LENGTHS)
def test_random_buckets_of_any_length(length):
    assert_sorted_alike(torch.randint(0, 8, (2, 1, 2, length)), 8)


def test_spans_of_the_length_that_the_gpu_gets(monkeypatch):
    monkeypatch.setattr(triton_sort, "_SPAN", SPAN)
    assert_sorted_alike(torch.randint(0, 300, (1, 1, 1, SPAN + 30)), 300)


@pytest.mark.parametrize("length", [65, 200])
@pytest.mark.parametrize("num_buckets", [1, 2, 3, 257, 512, 513, 4096, 300_000])
def test_any_number_of_buckets(num_buckets, length):
    """One, two and three passes."""
    buckets = torch.randint(0, num_buckets, (1, 2, 1, length))
    buckets[..., length // 2] = num_buckets - 1
    assert_sorted_alike(buckets, num_buckets)


@pytest.mark.parametrize("num_buckets", [40, 2000])
@pytest.mark.parametrize("direction", [1, 0, -1], ids=["sorted", "all equal", "reversed"])
def test_lines_that_are_in_order_already_or_not_at_all(direction, num_buckets):
    buckets = torch.arange(300).mul(num_buckets).div(300, rounding_mode="floor")
    buckets = {1: buckets, 0: torch.full_like(buckets, 7), -1: buckets.flip(0)}[direction]
    assert_sorted_alike(buckets.view(1, 1, 1, -1), num_buckets)


@pytest.mark.parametrize("num_buckets", [6, 1024])
def test_padding_in_the_bucket_above_all_others_sorts_last(num_buckets):
    buckets = torch.randint(0, num_buckets, (2, 2, 1, 110))
    buckets = torch.where(torch.rand(2, 1, 1, 110) < 0.3, num_buckets, buckets)
    assert_sorted_alike(buckets, num_buckets + 1)


def test_expanded_and_transposed_buckets():
    assert_sorted_alike(torch.randint(0, 5, (1, 2, 1, 70)).expand(3, -1, 2, -1), 5)
    assert_sorted_alike(torch.randint(0, 5, (2, 70, 1, 3)).transpose(1, 3), 5)


def test_no_lines_at_all():
    assert_sorted_alike(torch.zeros((0, 2, 1, 70), dtype=torch.int64), 5)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(data=st.data(), num_buckets=st.sampled_from([1, 2, 5, 600, 1 << 20]))
def test_the_order_is_a_stable_permutation_and_the_rank_its_inverse(data, num_buckets):
    values = st.lists(st.integers(0, num_buckets - 1), min_size=1, max_size=80)
    buckets = data.draw(values)
    order, rank = triton_sort.sort_tokens(torch.tensor(buckets, device=DEVICE), num_buckets)
    assert order.tolist() == sorted(range(len(buckets)), key=lambda i: (buckets[i], i))
    assert rank[order].tolist() == list(range(len(buckets)))


@pytest.mark.parametrize("num_buckets", [4, 1024])
def test_buckets_out_of_range_count_as_the_nearest_in_range(num_buckets):
    buckets = torch.randint(-num_buckets, 3 * num_buckets, (1, 1, 1, 200))
    buckets[..., 0], buckets[..., 1] = 2**40, -(2**40)
    expected = sort_by_bucket(buckets.clamp(0, num_buckets - 1))
    order, rank = triton_sort.sort_tokens(buckets.to(DEVICE), num_buckets)
    assert torch.equal(order.cpu(), expected.order)
    assert torch.equal(rank.cpu(), expected.rank)


@pytest.mark.parametrize("num_buckets", [1, 2, 512, 513, 16385, 262144, 262145, 1 << 29])
def test_digits_cover_all_buckets_in_as_few_passes_as_can_be(num_buckets):
    digits = triton_sort._digits_of_passes(num_buckets)
    assert torch.tensor(digits).prod() >= num_buckets
    assert max(digits) <= 512
    assert 512 ** (len(digits) - 1) < max(2, num_buckets)


def test_what_the_kernels_do_not_take_is_left_to_pytorch():
    assert not triton_sort.fits(torch.zeros((1, 1, 1, 4), dtype=torch.int32), 2)
    assert not triton_sort.fits(torch.zeros((1, 1, 1, 4), dtype=torch.int64), 1 << 30)


def test_a_known_number_of_buckets_changes_nothing_on_a_cpu():
    buckets = torch.randint(0, 6, (2, 3, 2, 50))
    plain, known = sort_by_bucket(buckets), sort_by_bucket(buckets, 6)
    assert known.bucket is buckets
    assert torch.equal(plain.order, known.order)
    assert torch.equal(plain.rank, known.rank)


@pytest.mark.parametrize("padded", [False, True], ids=["all real", "padded"])
@pytest.mark.parametrize("num_buckets", [None, 1, [4, 8]], ids=str)
def test_attention_is_the_same_with_the_counting_sort(monkeypatch, num_buckets, padded):
    lengths = torch.tensor([[90], [40 if padded else 90]], device=DEVICE)
    mask = torch.arange(90, device=DEVICE) < lengths
    arguments = {
        "window": AttentionWindow("window", 8, 0, 16, True, True),
        "settings": HashSettings(2, 1, num_buckets),
        "padding": Padding.from_attention_mask(mask),
        "backend": "torch",
    }
    x = torch.randn(2, 2, 90, 32, device=DEVICE)
    monkeypatch.setattr(sorting, "usable_on", lambda device: False)
    expected, _ = lsh_attention(x, x, **arguments)
    sorts = []
    sort_tokens = triton_sort.sort_tokens

    def noted(buckets: Tensor, num_buckets: int) -> tuple[Tensor, Tensor]:
        assert int(buckets.max()) < num_buckets
        sorts.append(num_buckets)
        return sort_tokens(buckets, num_buckets)

    monkeypatch.setattr(sorting, "usable_on", lambda device: True)
    monkeypatch.setattr(triton_sort, "sort_tokens", noted)
    out, _ = lsh_attention(x, x, **arguments)
    assert torch.equal(out, expected)
    # Without padding, one bucket is the order of the sequence.
    assert len(sorts) == (padded or num_buckets != 1)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_sorting_does_not_wait_for_the_device():
    buckets = torch.randint(0, 2000, (1, 4, 2, 5000), device=DEVICE)
    triton_sort.sort_tokens(buckets, 2000)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        triton_sort.sort_tokens(buckets, 2000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
