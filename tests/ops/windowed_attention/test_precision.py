"""What becomes of narrow dtypes, of fp32, and of autocast around the call."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_errors_are_at_most_twice_those_of_the_plain_maths(
    dtype, pattern, count_duplicates, make_problem, make_window
):
    before = 16 if pattern == "window" else 1
    window = make_window(pattern, before, chunk_length=16, count_duplicates=count_duplicates)
    narrow = make_problem(70, window, size=16).to(dtype)
    exact = narrow.to(torch.float64).solve("reference")
    own, plain = narrow.solve("torch"), narrow.solve("reference")
    visible = exact["lse"] > -1e4  # the lse of a token that sees only itself is a stand-in
    for name, x in exact.items():
        errors = []
        for got in (own, plain):
            error = (got[name].double() - x)[visible] if name == "lse" else got[name].double() - x
            errors.append(error.square().mean().sqrt().item())
        assert errors[0] <= 2 * errors[1], name


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_fp32_is_accurate_for_tokens_that_see_only_themselves(
    pattern, rounds, dropout, backend, make_problem, make_window
):
    # Their lse is -1e5 and a logarithm, of which fp32 keeps two digits after the point. With
    # dropout it matters how often a token meets itself in each round.
    for count_duplicates in (True, False):
        window = make_window(
            pattern,
            2,
            chunk_length=2,
            count_duplicates=count_duplicates,
            dropout=dropout,
            dropout_seed=17,
        )
        problem = make_problem(16, window, rounds=rounds, num_buckets=12)
        expected = problem.solve("reference")
        got = problem.to(torch.float32).solve(backend)
        if dropout == 0.0:
            assert torch.equal(expected["out"][:, :, 0], problem.value[:, :, 0])
        for name in expected.keys() - {"lse"}:
            torch.testing.assert_close(got[name].double(), expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_around_the_call_does_not_touch_fp32(backend, make_problem, make_window):
    problem = make_problem(40, make_window(), own_keys=True).to(torch.float32)
    expected = problem.solve(backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = problem.attend(backend)
    assert torch.equal(out, expected["out"])
    assert torch.equal(lse, expected["lse"])


def test_autocast_around_the_backward_pass_does_not_touch_fp32(make_problem, make_window):
    problem = make_problem(40, make_window(), own_keys=True).to(torch.float32)
    expected = problem.solve("torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = problem.solve("torch")
    assert all(torch.equal(got[name], x) for name, x in expected.items())


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("dtype", "lse_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
    ids=str,
)
def test_dtypes_of_results(backend, dtype, lse_dtype, make_problem, make_window):
    results = make_problem(9, make_window()).to(dtype).solve(backend)
    assert results.pop("lse").dtype == lse_dtype
    assert {x.dtype for x in results.values()} == {dtype}
