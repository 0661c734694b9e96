"""The triton backend equals the reference: on a CUDA device, or in Triton's interpreter.

Expected values come from the reference in fp64. Uninitialised memory is NaN here (see the fixture
in ``tests/ops/conftest.py``), so that rows which no program writes show up.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.sorting import BucketOrder
from reformer_hf.ops.windowed_attention import triton_launch
from reformer_hf.ops.windowed_attention.triton_launch import Tiling
from tests.ops.windowed_attention.test_backends import REACHES, Case, with_layout

pytest.importorskip("triton")

# Less than a tile, a tile less and more one token, and several tiles, of which the last is short.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "pattern": ("window", "chunk"),
    "causal": (True, False),
    "rounds": (1, 2, 3),
    "length": (1, 63, 65, 130),
    "chunk_length": (16, 64, 100),
    "own_keys": (True, False),
    "exclude_self": (True, False),
    "count_duplicates": (True, False),
    "dropout": (0.0, 0.3),
    "padding": ("none", "left", "right", "middle", "whole row"),
    "order": ("per head", "shared by heads", "sequence"),
}
PAIRED = ("pattern", "causal", "rounds", "own_keys", "exclude_self", "count_duplicates", "dropout")


def draw_cases(count: int, seed: int) -> list[Case]:
    choose = random.Random(seed)
    cases = []
    while len(cases) < count:
        chosen = {name: choose.choice(values) for name, values in OPTIONS.items()}
        reaches = [*REACHES[chosen["pattern"], chosen["causal"]]]
        if chosen["pattern"] == "window":  # wider than a tile too
            reaches += [(70, 0)] if chosen["causal"] else [(70, 35)]
        cases.append(Case(reach=choose.choice(reaches), **chosen))
    return cases


CASES = draw_cases(28, seed=27)


def on(problem: Any, device: str) -> Any:
    """The same problem on another device."""

    def moved(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    order = problem.order
    if order is not None:
        order = BucketOrder(*(x.to(device) for x in (order.order, order.rank, order.bucket)))
    names = ("query", "key", "value", "grad_out", "real")
    return replace(problem, order=order, **{n: moved(getattr(problem, n)) for n in names})


def solve(problem: Any, device: str) -> dict[str, Tensor]:
    return {n: x.cpu() for n, x in on(problem, device).solve("triton").items()}


def assert_equals_reference(problem: Any, device: str, tolerance: float = 1e-5) -> None:
    """The problem, in fp64, against its solution in fp32."""
    expected, got = problem.solve("reference"), solve(problem.to(torch.float32), device)
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            got[name].double(), x, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# ---- equality ----


def test_the_cases_cover_all_values_and_the_pairs_that_choose_code():
    for name, values in OPTIONS.items():
        assert {getattr(case, name) for case in CASES} == set(values), name
    for first, second in itertools.combinations(PAIRED, 2):
        seen = {(getattr(c, first), getattr(c, second)) for c in CASES}
        assert seen == set(itertools.product(OPTIONS[first], OPTIONS[second])), (first, second)


def small(case: Case, make_problem: Any) -> Any:
    heads = 2 if case.order == "shared by heads" else 1
    problem = case.problem(
        lambda *a, **k: make_problem(*a, batch=1, heads=heads, size=32, num_buckets=2, **k)
    )
    # Keys of any length give scores as large as the head size otherwise.
    return replace(problem, scale=32**-0.5) if case.own_keys else problem


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> None:
    """Interpreted programs cost by their number, so there are fewer, with the tiles of bf16."""
    if triton_device == "cpu":
        monkeypatch.setattr(triton_launch, "choose_tiling", lambda *_, **__: Tiling(64, 4))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_equals_reference_in_output_lse_and_every_gradient(
    case, make_problem, large_tiles, triton_device
):
    assert_equals_reference(small(case, make_problem), triton_device)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(8))
def test_triton_equals_reference_in_many_more_cases(seed, make_problem, large_tiles, triton_device):
    for case in draw_cases(20, seed):
        assert_equals_reference(small(case, make_problem), triton_device)


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_tiles_change_nothing(
    block, pattern, make_problem, make_window, monkeypatch, triton_device
):
    # Chunks of three tiles, the last of which is short; windows that end inside tiles.
    window = make_window(pattern, 20 if pattern == "window" else 1, chunk_length=40, after=0)
    problem = make_problem(70, window, batch=1, heads=1, size=32)
    monkeypatch.setattr(triton_launch, "choose_tiling", lambda *_, **__: Tiling(block, 4))
    assert_equals_reference(problem, triton_device)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_all_head_sizes(size, pattern, make_problem, make_window, triton_device):
    window = make_window(pattern, 40 if pattern == "window" else 1, chunk_length=32)
    problem = make_problem(40, window, batch=1, heads=1, size=size, rounds=1)
    assert_equals_reference(problem, triton_device)


@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_errors_are_at_most_twice_those_of_the_plain_maths(
    dtype, count_duplicates, make_problem, make_window, triton_device
):
    if triton_device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bit patterns of bf16 as integers")
    window = make_window("window", 16, count_duplicates=count_duplicates)
    narrow = make_problem(70, window, batch=1, heads=1, size=32).to(dtype)
    exact = narrow.to(torch.float64).solve("reference")
    own, plain = solve(narrow, triton_device), narrow.solve("reference")
    visible = exact["lse"] > -1e4  # the lse of a token that sees only itself is a stand-in
    for name, x in exact.items():
        errors = []
        for got in (own, plain):
            error = (got[name].double() - x)[visible] if name == "lse" else got[name].double() - x
            errors.append(error.square().mean().sqrt().item())
        assert errors[0] <= 2 * errors[1], name


# ---- tokens that see little ----


@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["", "dropout"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_tokens_that_see_only_themselves_get_their_own_value(
    pattern, dropout, make_problem, make_window, triton_device
):
    for count_duplicates in (True, False):
        window = make_window(
            pattern, 2, chunk_length=16, dropout=dropout, count_duplicates=count_duplicates
        )
        problem = make_problem(20, window, rounds=2, num_buckets=20, batch=1, heads=1, size=32)
        assert_equals_reference(problem, triton_device)
        if dropout == 0.0:
            out = solve(problem.to(torch.float32), triton_device)["out"]
            torch.testing.assert_close(out[:, :, 0].double(), problem.value[:, :, 0])


def test_rows_that_see_nothing_are_zero_with_an_lse_of_minus_infinity(
    make_problem, make_window, triton_device
):
    window = make_window("chunk", 1, chunk_length=16, exclude_self=False)
    problem = make_problem(20, window, padding="whole row", own_keys=True, size=32, rounds=1)
    results = solve(problem.to(torch.float32), triton_device)
    blind = (~problem.real).unsqueeze(1).expand(-1, 2, -1)
    assert torch.equal(results["lse"] == -torch.inf, blind)
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(results[name][blind], torch.zeros_like(results[name][blind])), name
        assert torch.isfinite(results[name]).all()


# ---- memory layouts, determinism, autograd ----


@pytest.mark.parametrize("layout", ["heads inside tokens", "every other number", "sizes outside"])
def test_strides_of_inputs_and_gradients_change_nothing(
    layout, make_problem, make_window, triton_device
):
    problem = make_problem(20, make_window(), own_keys=True, batch=1, size=32, rounds=1)
    problem = problem.to(torch.float32)
    expected = solve(problem, triton_device)
    names = ("query", "key", "value", "grad_out")
    arranged = replace(problem, **{n: with_layout(getattr(problem, n), layout) for n in names})
    for name, x in solve(arranged, triton_device).items():
        assert torch.equal(x, expected[name]), name


def test_a_gradient_that_is_one_number_everywhere(make_problem, make_window, triton_device):
    problem = make_problem(20, make_window(), batch=1, size=32, rounds=1)
    ones = torch.ones((), dtype=torch.float64).expand_as(problem.grad_out)
    assert_equals_reference(replace(problem, grad_out=ones), triton_device)


def test_two_runs_give_the_same_bits(make_problem, make_window, triton_device):
    window = make_window(before=20, dropout=0.2)
    problem = make_problem(40, window, batch=1, heads=1, size=32).to(torch.float16)
    first, second = (solve(problem, triton_device) for _ in range(2))
    assert all(torch.equal(first[name], x) for name, x in second.items())


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_opcheck_passes(pattern, make_problem, make_window, triton_device):
    from reformer_hf.ops.windowed_attention import WindowedAttentionCall
    from reformer_hf.ops.windowed_attention.operators import _arguments

    window = make_window(pattern, 1)
    p = on(make_problem(9, window, batch=1, heads=1, size=32).to(torch.float32), triton_device)
    query, value = p.query.requires_grad_(), p.value.requires_grad_()
    call = WindowedAttentionCall(query, None, value, p.order, p.real, window, p.scale)
    operator = torch.ops.reformer_hf.windowed_attention.default
    torch.library.opcheck(operator, _arguments(call, "triton"))


# ---- size ----


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offsets_beyond_31_bits_reach_the_right_rows():
    # Two million tokens, 32 heads of 64: 2**32 elements a tensor, 8 GiB in bf16.
    length, heads, size, tail = 1 << 21, 32, 64, 512
    window = AttentionWindow("window", 64, 0, 64, causal=True, exclude_self=False)
    shape = (1, length, heads, size)
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    query, key, value = (x.transpose(1, 2) for x in tensors)
    from reformer_hf.ops.windowed_attention import windowed_attention

    out, _ = windowed_attention(query, key, value, window=window, scale=0.125, backend="triton")
    ends = [x[:, -2:, -tail:] for x in (query, key, value)]
    expected, _ = windowed_attention(*ends, window=window, scale=0.125, backend="reference")
    torch.testing.assert_close(out[:, -2:, -tail + 64 :], expected[:, :, 64:], rtol=0.02, atol=0.02)
