"""The reference against the definitions, written out token by token."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import BucketOrder
from reformer_hf.ops.windowed_attention import WindowedAttentionCall
from reformer_hf.ops.windowed_attention.reference import attention_weights

BACKENDS = ["reference", "torch"]
# name: (pattern, before, after, causal)
SHAPES = {
    "window back": ("window", 3, 0, True),
    "window both": ("window", 2, 3, False),
    "window far": ("window", 50, 0, True),
    "chunk alone": ("chunk", 0, 0, False),
    "chunk back": ("chunk", 1, 0, True),
    "chunk both": ("chunk", 2, 1, False),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[str, int, int, bool]:
    return SHAPES[request.param]


def window_sightings(buckets: list[int], window: AttentionWindow) -> list[tuple[int, int]]:
    """Pairs ``(i, j)`` of one round: ``j`` stands near ``i`` in the line of their bucket."""
    pairs = []
    for bucket in set(buckets):
        line = [i for i, b in enumerate(buckets) if b == bucket]  # by position
        for place, i in enumerate(line):
            seen = line[max(0, place - window.before) : place + window.after + 1]
            pairs += [(i, j) for j in seen]
    return pairs


def chunk_sightings(
    rounds: list[list[int]], window: AttentionWindow, real: list[bool]
) -> list[tuple[int, int]]:
    """Pairs ``(i, j)`` of all rounds: ``j`` stands in a chunk that the chunk of ``i`` looks at."""
    ring = []
    for buckets in rounds:
        line = sorted(range(len(buckets)), key=lambda i, b=buckets: (b[i], i))
        size = window.chunk_length
        ring += [line[start : start + size] for start in range(0, len(line), size)]
    pairs = []
    for place, chunk in enumerate(ring):
        for shift in range(-window.before, window.after + 1):
            neighbour = ring[(place + shift) % len(ring)]
            pairs += [(i, j) for i in chunk for j in neighbour]
    if window.causal:
        pairs = [(i, j) for i, j in pairs if j <= i]
    return [(i, j) for i, j in pairs if (real[i] and real[j]) or (i == j and window.exclude_self)]


def sightings(problem: Any, row: int, head: int) -> Tensor:
    """``[N, N]``: how often ``i`` sees ``j``, over all rounds."""
    length = problem.query.shape[2]
    order: BucketOrder = problem.order
    head = head % order.bucket.shape[1]
    rounds = order.bucket[row, head].tolist()
    real = [True] * length if problem.real is None else problem.real[row].tolist()
    if problem.window.pattern == "window":
        pairs = [p for buckets in rounds for p in window_sightings(buckets, problem.window)]
    else:
        pairs = chunk_sightings(rounds, problem.window, real)
    counts = torch.zeros(length, length, dtype=torch.float64)
    for pair in pairs:
        counts[pair] += 1
    if problem.window.exclude_self:
        alone = (counts > 0).sum(dim=1) == 1
        counts -= torch.diag(counts.diag() * ~alone)
    return counts


def dense_attention(problem: Any) -> tuple[Tensor, Tensor]:
    """The softmax over what each token sees, and its normaliser, one token at a time."""
    batch, heads, length, size = problem.query.shape
    out = torch.zeros_like(problem.value)
    lse = torch.full((batch, heads, length), -torch.inf, dtype=torch.float64)
    for row in range(batch):
        for head in range(heads):
            query, value = problem.query[row, head], problem.value[row, head]
            if problem.key is None:
                key = query / (query.square().sum(-1, keepdim=True) + 1e-6 * size).sqrt()
            else:
                key = problem.key[row, head]
            counts = sightings(problem, row, head)
            if not problem.window.count_duplicates:
                counts = (counts > 0).double()
            for i in range(length):
                seen = counts[i].nonzero().flatten()
                if len(seen) == 0:
                    continue
                scores = (key[seen] @ query[i]) * problem.scale
                if problem.window.exclude_self and seen.tolist() == [i]:
                    scores = torch.tensor([-1e5], dtype=torch.float64)
                weights = counts[i, seen] * torch.exp(scores - scores.max())
                lse[row, head, i] = scores.max() + weights.sum().log()
                out[row, head, i] = (weights / weights.sum()) @ value[seen]
    return out, lse


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
@pytest.mark.parametrize("padding", ["none", "left", "middle", "whole row"])
def test_merged_rounds_are_dense_attention_over_what_the_rounds_make_visible(
    shape, padding, count_duplicates, backend, make_problem
):
    pattern, before, after, causal = shape
    for rounds, own_keys in ((1, False), (3, False), (3, True)):
        window = AttentionWindow(
            pattern, before, after, 4, causal, not own_keys, count_duplicates=count_duplicates
        )
        problem = make_problem(
            14, window, rounds=rounds, heads=1, padding=padding, own_keys=own_keys, scale=0.8
        )
        for got, expected in zip(problem.attend(backend), dense_attention(problem), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def weights_of(problem: Any, backend: str) -> Tensor:
    """The attention matrix, read off by attending to unit vectors."""
    batch, heads, length, _ = problem.query.shape
    unit = torch.eye(length, dtype=problem.query.dtype).expand(batch, heads, -1, -1)
    query = torch.nn.functional.pad(problem.query, (0, length - problem.query.shape[-1]))
    # Zeros in the query change its products only through the size in the norm of the keys.
    return replace(problem, query=query, value=unit).attend(backend)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_sees_itself_only_if_it_sees_nothing_else(shape, backend, make_problem):
    pattern, before, after, causal = shape
    window = AttentionWindow(pattern, before, after, 4, causal, exclude_self=True)
    problem = make_problem(14, window, batch=1, heads=1, num_buckets=6)
    own = weights_of(problem, backend)[0, 0].diag()
    alone = sightings(problem, 0, 0).diag() > 0
    expected = alone.to(own.dtype)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-12)
    if causal:
        assert alone[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_that_see_nothing_are_zero_with_an_lse_of_minus_infinity(
    dtype, backend, make_problem, make_window
):
    window = make_window("chunk", 1, exclude_self=False)
    problem = make_problem(14, window, padding="whole row", own_keys=True, batch=3).to(dtype)
    results = problem.solve(backend)
    blind = ~problem.real
    assert blind.any()
    blind = blind.unsqueeze(1).expand(-1, 2, -1)
    assert torch.equal(results["lse"] == -torch.inf, blind)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(results[name][blind], torch.zeros_like(results[name][blind])), name
        assert torch.isfinite(results[name]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rounds_of_a_multiset_merge_by_the_logsumexp_of_single_rounds(
    backend, make_problem, make_window
):
    problem = make_problem(30, make_window(), rounds=4)
    order: BucketOrder = problem.order
    singles = []
    for r in range(4):
        part = BucketOrder(*(x[:, :, r : r + 1] for x in (order.order, order.rank, order.bucket)))
        singles.append(replace(problem, order=part).attend(backend))
    outs, lses = (torch.stack(x) for x in zip(*singles, strict=True))
    merged = lses.logsumexp(dim=0)
    expected = (outs * torch.exp(lses - merged).unsqueeze(-1)).sum(dim=0)
    out, lse = problem.attend(backend)
    torch.testing.assert_close(lse, merged, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_rounds_counted_once_are_a_single_round(backend, make_problem, make_window):
    single = make_problem(30, make_window(count_duplicates=False), rounds=1)
    order: BucketOrder = single.order
    copies = BucketOrder(
        *(x.expand(-1, -1, 5, -1) for x in (order.order, order.rank, order.bucket))
    )
    repeated = replace(single, order=copies)
    for got, expected in zip(repeated.attend(backend), single.attend(backend), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_attention_weights_times_values_are_the_output(shape, make_problem):
    pattern, before, after, causal = shape
    for dropout in (0.0, 0.4):
        window = AttentionWindow(pattern, before, after, 4, causal, True, dropout=dropout)
        p = make_problem(14, window)
        call = WindowedAttentionCall(p.query, p.key, p.value, p.order, p.real, window, p.scale)
        weights = attention_weights(call)
        torch.testing.assert_close(weights @ p.value, p.attend("torch")[0], rtol=1e-9, atol=1e-9)
        if dropout == 0.0:
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            assert weights.min() >= 0.0


def test_weights_of_a_window_by_hand():
    # Two buckets, 0 2 3 and 1 4, a window of one token back.
    window = AttentionWindow("window", 1, 0, 4, causal=True, exclude_self=False)
    query = torch.ones(1, 1, 5, 1)
    buckets = torch.tensor([0, 1, 0, 0, 1]).view(1, 1, 1, 5)
    order = torch.tensor([0, 2, 3, 1, 4]).view(1, 1, 1, 5)
    rank = torch.tensor([0, 3, 1, 2, 4]).view(1, 1, 1, 5)
    key = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).log1p().view(1, 1, 5, 1)  # exp: 1 2 3 4 5
    call = WindowedAttentionCall(
        query, key, query, BucketOrder(order, rank, buckets), None, window, 1.0
    )
    expected = torch.zeros(5, 5)
    expected[0, 0] = expected[1, 1] = 1.0
    expected[2, [0, 2]] = torch.tensor([1.0, 3.0]) / 4.0
    expected[3, [2, 3]] = torch.tensor([3.0, 4.0]) / 7.0
    expected[4, [1, 4]] = torch.tensor([2.0, 5.0]) / 7.0
    torch.testing.assert_close(attention_weights(call)[0, 0], expected)


def test_shared_keys_have_unit_length_whatever_the_query(make_problem, make_window):
    problem = make_problem(12, make_window(), rounds=1)
    query, size = problem.query, problem.query.shape[-1]
    key = query / (query.square().sum(-1, keepdim=True) + size * 1e-6).sqrt()
    given = replace(problem, key=key)
    for got, expected in zip(problem.attend("torch"), given.attend("torch"), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert math.isclose(key.norm(dim=-1).max().item(), 1.0, rel_tol=1e-3)
