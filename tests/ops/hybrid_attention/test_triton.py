"""The triton backend equals the reference: on a CUDA device, or in Triton's interpreter.

Expected values come from the reference in fp64. Uninitialised memory is NaN here (see the fixture
in ``tests/ops/conftest.py``), so that rows which no program writes show up.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention, triton_turns
from reformer_hf.ops.hybrid_attention.triton_turns import Tiling
from tests.ops.hybrid_attention.conftest import PADDINGS, Problem, make_problem

pytest.importorskip("triton")

# Interpreted programs cost by their number: short sequences, and one key-value head of two heads.
_FEW = {"batch": 1, "heads": 2, "groups": 1}
_WINDOW = HybridWindow(20, 3, 2, 8)


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch, triton_device: str) -> None:
    """Fewer programs in the interpreter, with the tiles of bf16."""
    if triton_device == "cpu":
        monkeypatch.setattr(triton_turns, "choose_tiling", lambda *_, **__: Tiling(64, 4))


def solve(problem: Problem, device: str) -> dict[str, Tensor]:
    names = ("query", "key", "value", "grad_out")
    moved = {name: getattr(problem, name).to(device) for name in names}
    real = None if problem.real is None else problem.real.to(device)
    problem = replace(problem, real=real, **moved)
    return {name: x.cpu() for name, x in problem.solve("triton").items()}


def assert_like_reference(problem: Problem, device: str, tolerance: float = 1e-5) -> None:
    """The problem, in fp64, against its solution in fp32."""
    expected, got = problem.solve("reference"), solve(problem.to(torch.float32), device)
    for name, x in expected.items():
        torch.testing.assert_close(
            got[name].double(), x, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_equals_the_reference(padding, causal, large_tiles, triton_device) -> None:
    window = replace(_WINDOW, causal=causal, num_hashes=2 if causal else 1)
    problem = make_problem(window, queries=90, keys=90, batch=2, heads=1, groups=1, padding=padding)
    assert_like_reference(problem, triton_device)


@pytest.mark.parametrize(
    ("window", "queries", "keys"),
    [
        (HybridWindow(7, 2, 2, 5), 65, 65),  # shorter than any tile
        (HybridWindow(7, 2, 2, 5), 1, 65),
        (HybridWindow(7, 2, 2, 5), 1, 1),
        (HybridWindow(1, 0, 2, 100), 150, 150),  # rounds see all of a bucket, several blocks back
        (HybridWindow(200, 0), 100, 100),  # a window longer than the sequence
        (HybridWindow(50, 300), 100, 100),  # more sinks than tokens
        (HybridWindow(10, 70, 1, 8), 100, 150),  # more sinks than a tile holds
        (HybridWindow(50, 4, 0), 130, 130),  # no rounds
        (HybridWindow(20, 3, 2, 1), 100, 100),  # one key a round
        (HybridWindow(20, 3, 2, 1, causal=False), 100, 100),
        (HybridWindow(20, 3, 4, 8, num_buckets=2), 100, 100),  # rounds that show the same again
        (HybridWindow(33, 1, 1, 16), 60, 1060),  # two levels
    ],
    ids=str,
)
def test_equals_the_reference_at_the_edges(
    window, queries, keys, large_tiles, triton_device
) -> None:
    assert_like_reference(make_problem(window, queries=queries, keys=keys, **_FEW), triton_device)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])
def test_dropout_drops_what_the_reference_drops(causal, large_tiles, triton_device) -> None:
    window = replace(_WINDOW, causal=causal, num_hashes=1, dropout=0.3, dropout_seed=5)
    problem = make_problem(window, queries=70, keys=90, batch=2, heads=2, groups=1, padding="left")
    assert_like_reference(problem, triton_device)


@pytest.mark.parametrize(("size", "value_size"), [(24, 40), (8, 16), (96, 16), (16, 128)])
def test_any_head_size(size, value_size, large_tiles, triton_device) -> None:
    problem = make_problem(_WINDOW, queries=60, keys=60, **_FEW, size=size, value_size=value_size)
    assert_like_reference(problem, triton_device)


@pytest.mark.parametrize("block", [16, 32])
def test_tiles_change_nothing(block, monkeypatch, triton_device) -> None:
    problem = make_problem(replace(_WINDOW, num_hashes=1), queries=70, keys=70, **_FEW)
    monkeypatch.setattr(triton_turns, "choose_tiling", lambda *_, **__: Tiling(block, 4))
    assert_like_reference(problem, triton_device)


def test_sinks_of_more_queries_than_one_program_takes(
    monkeypatch, large_tiles, triton_device
) -> None:
    if triton_device == "cpu":
        # The kernels have their chunk compiled in: enough queries for two of them.
        queries = triton_turns.SINK_CHUNK // 2 + 40
    else:
        queries = triton_turns.SINK_CHUNK + 40
    window = HybridWindow(8, 2, 0)
    problem = make_problem(window, queries=queries, keys=queries, batch=1, heads=2, groups=1)
    assert_like_reference(problem, triton_device)


def test_narrow_errors_are_at_most_twice_those_of_the_plain_maths(
    large_tiles, triton_device
) -> None:
    # Triton's interpreter multiplies the bit patterns of bf16 as integers.
    dtype = torch.float16 if triton_device == "cpu" else torch.bfloat16
    problem = make_problem(_WINDOW, queries=90, keys=90, **_FEW, dtype=dtype)
    exact = problem.to(torch.float64).solve("reference")
    plain, own = problem.solve("reference"), solve(problem, triton_device)
    for name, x in exact.items():
        errors = [(got[name].double() - x).square().mean().sqrt() for got in (own, plain)]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps * x.abs().mean(), name


def test_layouts_in_memory_change_nothing(large_tiles, triton_device) -> None:
    problem = make_problem(replace(_WINDOW, num_hashes=1), queries=70, keys=70, **_FEW)
    problem = problem.to(torch.float32)
    expected = solve(problem, triton_device)
    for step in (1, 2):
        moved = {}
        for name in ("query", "key", "value", "grad_out"):
            x = getattr(problem, name).transpose(1, 2)
            wide = x.new_zeros((*x.shape[:3], x.shape[3] * step))
            wide[..., ::step] = x
            moved[name] = wide[..., ::step].transpose(1, 2)
        for name, x in solve(replace(problem, **moved), triton_device).items():
            assert torch.equal(x, expected[name]), name


def test_two_runs_give_the_same_bits(large_tiles, triton_device) -> None:
    problem = make_problem(_WINDOW, queries=80, keys=80, **_FEW, dtype=torch.float16)
    first, second = (solve(problem, triton_device) for _ in range(2))
    assert all(torch.equal(first[name], x) for name, x in second.items())


def test_what_it_cannot_serve_is_refused_with_the_reason(monkeypatch) -> None:
    def refusal(size: int = 16, dtype: torch.dtype = torch.float32, **changed: int) -> str:
        x = torch.zeros(1, 1, 8, size, dtype=dtype)
        with pytest.raises(ValueError, match="'triton' cannot serve this call") as caught:
            hybrid_attention(x, x, x, HybridWindow(**changed), backend="triton")
        return str(caught.value)

    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "runs on cuda devices, got tensors on cpu" in refusal()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "head sizes of at most 128, got 256" in refusal(size=256)
    assert "float32, got torch.float64" in refusal(dtype=torch.float64)
    assert "buckets times keys a bucket" in refusal(num_buckets=1 << 30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_it_on_cuda_and_agrees_with_torch_at_length() -> None:
    window = HybridWindow(causal=True)
    problem = make_problem(
        window, queries=16384, keys=16384, batch=1, heads=6, groups=2, size=64, value_size=64
    ).to(torch.float32)
    moved = {n: getattr(problem, n).cuda() for n in ("query", "key", "value", "grad_out")}
    problem = replace(problem, **moved)
    expected, own, auto = (problem.solve(name) for name in ("torch", "triton", "auto"))
    for name, x in expected.items():
        torch.testing.assert_close(own[name], x, rtol=1e-3, atol=1e-3, msg=name)
        assert torch.equal(auto[name], own[name]), name
