"""What the reference shows to whom: the definition, by counting."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from reformer_hf.ops.hybrid_attention.call import HybridCall
from reformer_hf.ops.hybrid_attention.query_key_hashing import hash_queries_and_keys, key_centre
from reformer_hf.ops.hybrid_attention.reference import visible_keys
from reformer_hf.ops.hybrid_attention.window import levels
from tests.ops.hybrid_attention.conftest import Problem, make_problem


def call_of(problem: Problem) -> HybridCall:
    return HybridCall(problem.query, problem.key, problem.value, None, problem.window, 0.25)


@pytest.mark.parametrize("causal", [True, False])
def test_visible_keys_are_sinks_local_window_and_bucket_mates_counted_by_hand(causal: bool) -> None:
    window = HybridWindow(9, 2, num_hashes=2, bucket_window=5, num_buckets=4, causal=causal)
    problem = make_problem(window, queries=60, keys=60, batch=1, heads=2, groups=1)
    seen = visible_keys(call_of(problem))
    (level,) = levels(window, 0, 60)
    query_buckets, key_buckets = hash_queries_and_keys(
        problem.query[:, :, level.start :],
        problem.key,
        key_centre(problem.key, level),
        window,
        level,
    )
    for head in range(2):
        for i in range(60):
            expected = {j for j in range(60) if j < 2 and not (causal and j > i)}
            expected |= {j for j in range(60) if abs(i - j) < 9 and not (causal and j > i)}
            if i >= level.start:
                for r in range(2):
                    own = query_buckets[0, 0, r, head, i - level.start]
                    mates = [j for j in range(2, 60) if key_buckets[0, 0, r, j] == own]
                    before = [j for j in mates if j <= i - 9]
                    after = [j for j in mates if j >= i + 9]
                    expected |= set(before[-5:] if causal else before[-3:])
                    expected |= set() if causal else set(after[:2])
            assert set(seen[0, 0, head, i].nonzero().flatten().tolist()) == expected


def test_everything_in_the_local_window_is_full_attention() -> None:
    for causal in (True, False):
        window = HybridWindow(50, causal=causal)
        problem = make_problem(window, queries=50, keys=50)
        out, _ = hybrid_attention(
            problem.query, problem.key, problem.value, window, backend="reference"
        )
        repeated = (x.repeat_interleave(2, dim=1) for x in (problem.key, problem.value))
        full = torch.nn.functional.scaled_dot_product_attention(
            problem.query, *repeated, is_causal=causal
        )
        torch.testing.assert_close(out, full)


def test_one_bucket_without_limit_is_full_attention() -> None:
    window = HybridWindow(8, num_hashes=1, bucket_window=200, num_buckets=1)
    problem = make_problem(window, queries=100, keys=100)
    out, _ = hybrid_attention(problem.query, problem.key, problem.value, window)
    repeated = (x.repeat_interleave(2, dim=1) for x in (problem.key, problem.value))
    full = torch.nn.functional.scaled_dot_product_attention(
        problem.query, *repeated, is_causal=True
    )
    torch.testing.assert_close(out, full)


def test_the_centre_makes_keys_with_a_common_mean_spread_over_the_buckets() -> None:
    window = HybridWindow(16, num_hashes=1, num_buckets=16, sink_tokens=0)
    problem = make_problem(window, queries=400, keys=400, batch=1, heads=1, groups=1)
    (level,) = levels(window, 0, 400)
    key, query = problem.key + 20.0, problem.query[:, :, level.start :]
    plain, centred = (
        hash_queries_and_keys(query, key, centre, window, level)[1].unique().numel()
        for centre in (torch.zeros(1, 1, 1, 16), key_centre(key, level))
    )
    assert plain < 6
    assert centred > 12


@pytest.mark.parametrize(
    ("name", "value"),
    [("local_window", 0), ("sink_tokens", -1), ("num_hashes", -1), ("bucket_window", 0),
     ("dropout", 1.0)],
)  # fmt: skip
def test_a_window_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"`{name}`.*{value}"):
        HybridWindow(**{name: value})  # type: ignore[arg-type]


def test_bad_shapes_dtypes_and_backends_are_refused() -> None:
    problem = make_problem(HybridWindow(), queries=5, keys=9)
    query, key, value, window = problem.query, problem.key, problem.value, problem.window
    for bad, words in (
        ((query[0], key, value), "`query` must be"),
        ((query.float(), key, value), "dtype"),
        ((query, key[..., :8], value), "`key` must be"),
        ((query[:, :3], key, value), "`key` must be"),
        ((query, key, value[:, :, :4]), "`value` must be"),
        ((query.repeat(1, 1, 3, 1), key, value), "`query` must hold the last of the 9"),
        ((query[:, :, :0], key, value), "got 0 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            hybrid_attention(*bad, window)
    with pytest.raises(ValueError, match=r"`real` must be bool \[2, 9\]"):
        hybrid_attention(query, key, value, window, real=torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="`backend` must be"):
        hybrid_attention(query, key, value, window, backend="fast")
    long = torch.zeros(1, 1, 4097, 2)
    with pytest.raises(ValueError, match="at most 4096 tokens, got 4097"):
        hybrid_attention(long, long, long, window, backend="reference")


@pytest.mark.parametrize("bucket_window", [16, 64, 100])
@pytest.mark.parametrize("length", [1100, 4096, 70_000])
def test_buckets_hold_half_a_window_of_keys_to_a_whole_one(length: int, bucket_window: int) -> None:
    window = HybridWindow(num_hashes=1, bucket_window=bucket_window)
    found = levels(window, 0, length)
    assert found[0].start == window.local_window + window.sink_tokens
    assert found[-1].stop == length
    assert [x.start for x in found[1:]] == [x.stop for x in found[:-1]]
    power = bucket_window.bit_count() == 1
    for level in found[1:]:
        assert level.start / level.num_buckets >= bucket_window / (2 if power else 4)
        assert level.stop / level.num_buckets <= bucket_window


@pytest.mark.parametrize("local_window", [20, 256, 1500])
def test_keys_are_centred_by_keys_before_all_queries_of_a_level(local_window: int) -> None:
    window = HybridWindow(local_window, num_hashes=1)
    whole = levels(window, 0, 9000)
    assert all(x.known <= x.start for x in whole)
    assert all(x.known * 2 >= x.stop for x in whole[1:])
    for first_query in (1024, 1700, 5000):  # the same in every cut of a prefill
        rest = levels(window, first_query, 9000)
        assert [x.known for x in rest] == [x.known for x in whole][-len(rest) :]
