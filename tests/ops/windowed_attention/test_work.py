"""Work follows the tokens that are there, not the room that a chunk has for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from reformer_hf.ops.windowed_attention import WindowedAttentionCall, torch_backend

VARIANTS: dict[str, dict[str, Any]] = {
    "one round": {"rounds": 1},
    "rounds": {"rounds": 2},
    "both sides": {"rounds": 2, "after": 1},
    "own keys, sequence": {"own_keys": True, "exclude_self": False, "order": "sequence"},
    "padding": {"padding": "middle"},
    "union": {"count_duplicates": False},
}
WINDOW_OPTIONS = ("after", "exclude_self", "count_duplicates")


@pytest.fixture(params=VARIANTS)
def work(request: pytest.FixtureRequest, make_problem: Any, make_window: Any) -> Any:
    """Multiply-adds of a forward and a backward pass, as multiples of one score per pair."""

    def count(length: int, chunk_length: int, before: int = 1) -> float:
        options = dict(VARIANTS[request.param])
        window_options = {n: options.pop(n) for n in WINDOW_OPTIONS if n in options}
        window = make_window("chunk", before, chunk_length=chunk_length, **window_options)
        problem = make_problem(length, window, batch=1, heads=1, **options).to(torch.float32)
        call = WindowedAttentionCall(
            problem.query, problem.key, problem.value, problem.order, problem.real, window, 1.0
        )
        with FlopCounterMode(display=False) as counter:  # does not see into operators
            results = torch_backend.forward(call)
            torch_backend.backward(call, problem.grad_out, *results)
        return counter.get_total_flops() / (2 * length**2 * problem.query.shape[-1])

    return count


@pytest.mark.parametrize("length", [1, 20, 100])
def test_a_chunk_longer_than_the_sequence_costs_what_one_that_just_holds_it_does(work, length):
    expected = work(length, length)
    assert expected > 0
    assert work(length, 4096) == expected


@pytest.mark.parametrize("length", [1030, 1500, 2048])
def test_long_chunks_that_are_partly_empty_cost_what_their_tokens_do(work, length):
    # Two chunks: at most as many scores as if every token met every chunk it can, and each twice.
    assert work(length, 1024) <= 2 * work(length, length)


@pytest.mark.parametrize("chunk_length", [64, 400], ids=["filled up", "by itself"])
def test_chunks_that_a_ring_shows_again_are_not_worked_on_again(work, chunk_length):
    # The ring has 16 chunks at most.
    assert work(500, chunk_length, before=400) == work(500, chunk_length, before=40)
