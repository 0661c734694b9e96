"""Every backend against the reference: output, lse and all gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reformer_hf.ops import tile_arithmetic
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention, torch_backend
from tests.ops.hybrid_attention.conftest import PADDINGS, make_problem

_SMALL = HybridWindow(local_window=32, num_hashes=3, bucket_window=16)


def assert_like_reference(problem, tolerance: float = 1e-10) -> None:
    expected = problem.solve("reference")
    for name, x in problem.solve("torch").items():
        torch.testing.assert_close(x, expected[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("queries", [1300, 300], ids=["all queries", "last queries"])
def test_equals_the_reference(padding: str, causal: bool, queries: int) -> None:
    window = replace(_SMALL, causal=causal)
    keys = 1300 if queries == 1300 else 700
    assert_like_reference(make_problem(window, queries=queries, keys=keys, padding=padding))


@pytest.mark.parametrize(
    ("window", "queries", "keys"),
    [
        (HybridWindow(7, 2, 4, 5), 65, 65),  # shorter than any tile
        (HybridWindow(7, 2, 4, 5), 1, 65),
        (HybridWindow(7, 2, 4, 5), 1, 1),
        (HybridWindow(1, 0, 4, 200), 500, 500),  # rounds see all of a bucket, several blocks back
        (HybridWindow(1000, 0), 300, 300),  # a window longer than the sequence
        (HybridWindow(50, 600), 300, 300),  # more sinks than tokens
        (HybridWindow(50, 4, 0), 300, 300),  # no rounds
        (HybridWindow(20, 3, 2, 1), 300, 300),  # one key a round
        (HybridWindow(20, 3, 2, 1, causal=False), 300, 300),
        (HybridWindow(20, 3, 9, 8, num_buckets=2), 300, 300),  # rounds that show the same again
        (HybridWindow(20, 3, 2, 8, num_buckets=1), 300, 300),
        (HybridWindow(33, 1, 2, 16), 4095, 4095),  # two levels, odd
    ],
    ids=str,
)
def test_equals_the_reference_at_the_edges(window: HybridWindow, queries: int, keys: int) -> None:
    few = {"batch": 1, "heads": 2, "groups": 2, "value_size": 8}
    assert_like_reference(make_problem(window, queries=queries, keys=keys, **few))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_dropout_drops_what_the_reference_drops(causal: bool, padding: str) -> None:
    window = replace(_SMALL, causal=causal, dropout=0.3, dropout_seed=5)
    problem = make_problem(window, queries=400, keys=400, padding=padding)
    assert_like_reference(problem)
    plain = replace(problem, window=replace(window, dropout=0.0)).solve("torch")["out"]
    assert not torch.allclose(plain, problem.solve("torch")["out"])


def test_how_many_tiles_are_processed_together_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make_problem(_SMALL, queries=600, keys=600)
    expected = problem.solve("torch")
    monkeypatch.setattr(torch_backend, "SCORE_ELEMENTS", 1)
    assert tile_arithmetic.SCORE_ELEMENTS > 1
    for name, x in problem.solve("torch").items():
        torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_error_is_at_most_twice_that_of_plain_pytorch(dtype: torch.dtype) -> None:
    problem = make_problem(_SMALL, queries=700, keys=700, dtype=dtype)
    exact = problem.to(torch.float64).solve("reference")
    plain, own = problem.solve("reference"), problem.solve("torch")
    for name, x in own.items():
        assert x.dtype == plain[name].dtype
        # Hashes are in fp32 in both, so both see the same; a unit in the last place is granted.
        allowed = 2 * (plain[name].double() - exact[name]).abs().max()
        allowed += torch.finfo(dtype).eps * exact[name].abs().max()
        assert (x.double() - exact[name]).abs().max() <= allowed, name


def test_scores_far_apart_give_no_nan() -> None:
    problem = make_problem(_SMALL, queries=400, keys=400, dtype=torch.float32)
    problem = replace(problem, query=problem.query * 1e3)
    for x in problem.solve("torch").values():
        assert torch.isfinite(x).all()


def _heads_inside(x: Tensor) -> Tensor:
    """The same numbers as ``[B, N, H, D]``, as models give them."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _spread_out(x: Tensor) -> Tensor:
    """The same numbers, with others between them."""
    return x.repeat_interleave(3, dim=-1)[..., ::3]


@pytest.mark.parametrize("layout", [_heads_inside, _spread_out])
def test_layouts_in_memory_change_nothing(layout) -> None:
    problem = make_problem(_SMALL, queries=300, keys=300)
    expected = problem.solve("torch")
    moved = {n: layout(getattr(problem, n)) for n in ("query", "key", "value", "grad_out")}
    for name, x in replace(problem, **moved).solve("torch").items():
        torch.testing.assert_close(x, expected[name], msg=name)


def test_the_operator_is_one_node_with_a_true_fake() -> None:
    problem = make_problem(_SMALL, queries=60, keys=90, padding="left", dtype=torch.float32)
    window = problem.window
    numbers = (window.local_window, window.sink_tokens, window.num_hashes, window.bucket_window)
    leaves = [x.requires_grad_() for x in (problem.query, problem.key, problem.value)]
    torch.library.opcheck(
        torch.ops.reformer_hf.hybrid_attention.default,
        (*leaves, problem.real, (*numbers, 0, 7, 0, 0), True, 0.0, 0, 0.25, "torch"),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_a_second_derivative_is_refused() -> None:
    problem = make_problem(_SMALL, queries=40, keys=40)
    query = problem.query.requires_grad_()
    out, _ = hybrid_attention(query, problem.key, problem.value, problem.window)
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises((ValueError, RuntimeError), match="reference"):
        grad.sum().backward()
