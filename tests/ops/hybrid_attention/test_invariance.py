"""What must not change what a query sees: later tokens, padding, other rows, cuts of a prefill."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from tests.ops.hybrid_attention.conftest import Problem, make_problem

_WINDOW = HybridWindow(local_window=48, num_hashes=2, bucket_window=8)
_LENGTH = 1500  # two levels


def attend(problem: Problem, **changes) -> torch.Tensor:
    problem = replace(problem, **changes)
    parts = (problem.query, problem.key, problem.value)
    return hybrid_attention(*parts, problem.window, real=problem.real)[0]


# The second level begins within the local window, or behind it.
@pytest.mark.parametrize("local_window", [48, 1100])
def test_later_tokens_change_nothing_not_even_by_their_number(local_window: int) -> None:
    window = replace(_WINDOW, local_window=local_window)
    problem = make_problem(window, queries=_LENGTH, keys=_LENGTH)
    whole = attend(problem)
    for length in (1, 40, 49, 53, 900, 1024, 1025, 1499):
        parts = {n: getattr(problem, n)[:, :, :length] for n in ("query", "key", "value")}
        torch.testing.assert_close(attend(problem, **parts), whole[:, :, :length])
    edited = problem.key.clone()
    edited[:, :, 1200:] = edited[:, :, 1200:].flip(2) * 3
    torch.testing.assert_close(attend(problem, key=edited)[:, :, :1200], whole[:, :, :1200])


@pytest.mark.parametrize("local_window", [48, 1100])
@pytest.mark.parametrize("cuts", [(700,), (1, 2, 1024, 1030), (1490,)], ids=str)
def test_a_prefill_in_pieces_is_the_prefill_in_one(
    cuts: tuple[int, ...], local_window: int
) -> None:
    window = replace(_WINDOW, local_window=local_window)
    problem = make_problem(window, queries=_LENGTH, keys=_LENGTH)
    whole, start = attend(problem), 0
    for stop in (*cuts, _LENGTH):
        piece = attend(
            problem,
            query=problem.query[:, :, start:stop],
            key=problem.key[:, :, :stop],
            value=problem.value[:, :, :stop],
        )
        torch.testing.assert_close(piece, whole[:, :, start:stop])
        start = stop


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("left", [0, 1, 333])
@pytest.mark.parametrize("right", [0, 200])
def test_padding_changes_nothing_and_is_zero(causal: bool, left: int, right: int) -> None:
    window = replace(_WINDOW, causal=causal)
    problem = make_problem(window, queries=800, keys=800)
    whole = attend(problem)
    padded = {
        n: torch.nn.functional.pad(getattr(problem, n), (0, 0, left, right), value=9.0)
        for n in ("query", "key", "value")
    }
    real = torch.zeros(2, left + 800 + right, dtype=torch.bool)
    real[:, left : left + 800] = True
    out = attend(problem, **padded, real=real)
    torch.testing.assert_close(out[:, :, left : left + 800], whole)
    assert not out[:, :, :left].any()
    assert not out[:, :, left + 800 :].any()


def test_rows_and_groups_of_heads_do_not_touch_one_another() -> None:
    problem = make_problem(_WINDOW, queries=600, keys=600)
    whole = attend(problem)
    row = {n: getattr(problem, n)[1:] for n in ("query", "key", "value")}
    torch.testing.assert_close(attend(problem, **row), whole[1:])


def test_the_hash_seed_decides_what_is_found_and_nothing_else_does() -> None:
    problem = make_problem(_WINDOW, queries=600, keys=600)
    state = torch.random.get_rng_state()
    first, second = attend(problem), attend(problem)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    other = attend(problem, window=replace(_WINDOW, hash_seed=1))
    assert torch.equal(first[:, :, :52], other[:, :, :52])
    assert not torch.allclose(first, other)


def test_more_rounds_come_closer_to_full_attention() -> None:
    problem = make_problem(_WINDOW, queries=900, keys=900)
    full = attend(problem, window=HybridWindow(local_window=900))
    errors = [
        (attend(problem, window=replace(_WINDOW, num_hashes=r)) - full).abs().mean().item()
        for r in (0, 2, 8, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2
