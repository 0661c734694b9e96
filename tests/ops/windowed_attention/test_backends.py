"""Every backend equals the reference: output, lse and every gradient."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.windowed_attention import slots, torch_backend

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    """One combination of everything that a call can vary."""

    pattern: str
    causal: bool
    reach: tuple[int, int]
    rounds: int
    length: int
    chunk_length: int
    own_keys: bool
    exclude_self: bool
    count_duplicates: bool
    dropout: float
    padding: str
    order: str

    def __str__(self) -> str:
        words = [self.pattern, "causal" if self.causal else "both", f"N{self.length}"]
        words += [f"C{self.chunk_length}", f"R{self.rounds}", "W{}+{}".format(*self.reach)]
        words += ["own" if self.own_keys else "shared"]
        words += ["noself"] * self.exclude_self + ["union"] * (not self.count_duplicates)
        words += ["drop"] * (self.dropout > 0)
        words += [f"pad {self.padding}"] * (self.padding != "none") + [self.order]
        return "-".join(words).replace(" ", "_")

    def problem(self, make_problem: Callable[..., Any]) -> Any:
        window = AttentionWindow(
            self.pattern,
            *self.reach,
            chunk_length=self.chunk_length,
            causal=self.causal,
            exclude_self=self.exclude_self,
            count_duplicates=self.count_duplicates,
            dropout=self.dropout,
            dropout_seed=17,
        )
        return make_problem(
            self.length,
            window,
            rounds=self.rounds,
            order=self.order,
            padding=self.padding,
            own_keys=self.own_keys,
            scale=0.7 if self.own_keys else 1.0,
        )


OPTIONS: dict[str, tuple[Any, ...]] = {
    "pattern": ("window", "chunk"),
    "causal": (True, False),
    "rounds": (1, 2, 3),
    "length": (1, 2, 7, 33, 63, 64, 65, 100),
    "chunk_length": (1, 4, 16, 64),
    "own_keys": (True, False),
    "exclude_self": (True, False),
    "count_duplicates": (True, False),
    "dropout": (0.0, 0.3),
    "padding": ("none", "left", "right", "middle", "whole row"),
    "order": ("per head", "shared by heads", "sequence"),
}
# Windows: less and more than a chunk, more than most sequences, lopsided. Chunks: up to more than
# the whole ring, so that chunks meet others twice.
REACHES = {
    ("window", True): ((0, 0), (1, 0), (5, 0), (40, 0)),
    ("window", False): ((5, 5), (9, 2), (0, 7), (40, 3)),
    ("chunk", True): ((0, 0), (1, 0), (2, 0), (1, 1)),
    ("chunk", False): ((0, 0), (1, 1), (0, 2), (2, 1)),
}


def draw_cases(count: int, seed: int) -> list[Case]:
    choose = random.Random(seed)
    cases = []
    for _ in range(count):
        chosen = {name: choose.choice(values) for name, values in OPTIONS.items()}
        reach = choose.choice(REACHES[chosen["pattern"], chosen["causal"]])
        cases.append(Case(reach=reach, **chosen))
    return cases


# This seed's cases hold every pair of options, as the next test makes sure.
CASES = draw_cases(100, seed=843)


def test_the_cases_cover_every_pair_of_options():
    for (first, a), (second, b) in itertools.combinations(OPTIONS.items(), 2):
        seen = {(getattr(c, first), getattr(c, second)) for c in CASES}
        assert seen == set(itertools.product(a, b)), (first, second)
    assert {f.name for f in fields(Case)} == {*OPTIONS, "reach"}
    seen_reaches = {(c.pattern, c.causal, c.reach) for c in CASES}
    assert seen_reaches == {(*key, reach) for key, all_ in REACHES.items() for reach in all_}


def assert_equals_reference(problem: Any, tolerance: float) -> None:
    expected, got = problem.solve("reference"), problem.solve("torch")
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(
            got[name], x, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_equals_reference_in_output_lse_and_every_gradient(case, make_problem):
    problem = case.problem(make_problem)
    for dtype, tolerance in TOLERANCE.items():
        assert_equals_reference(problem.to(dtype), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 41))
def test_torch_equals_reference_in_many_more_cases(seed, make_problem):
    for case in draw_cases(60, seed):
        problem = case.problem(make_problem)
        for dtype, tolerance in TOLERANCE.items():
            assert_equals_reference(problem.to(dtype), tolerance)


# One slice and one tile at a time; and a few, so that the last group is smaller.
@pytest.mark.parametrize("elements", [1, 700, 2500])
@pytest.mark.parametrize("case", [c for c in CASES if 7 < c.length < 66][:10], ids=str)
def test_the_sizes_of_groups_and_segments_change_nothing(case, elements, make_problem, monkeypatch):
    monkeypatch.setattr(torch_backend, "SCORE_ELEMENTS", elements)
    monkeypatch.setattr(torch_backend, "_LINE_ELEMENTS", elements)
    assert_equals_reference(case.problem(make_problem), TOLERANCE[torch.float64])


# Chunks each by itself, some of a few queries at a time, instead of filled up to be alike.
@pytest.mark.parametrize("elements", [1, 1 << 19], ids=["divided", "whole"])
@pytest.mark.parametrize("case", [c for c in CASES if c.pattern == "chunk"][::2], ids=str)
def test_chunks_that_are_not_filled_up_change_nothing(case, elements, make_problem, monkeypatch):
    monkeypatch.setattr(slots, "_FILLED_UP_SCORES", 0)
    monkeypatch.setattr(slots, "_MAX_TILE", 3)
    monkeypatch.setattr(torch_backend, "SCORE_ELEMENTS", elements)
    assert_equals_reference(case.problem(make_problem), TOLERANCE[torch.float64])


@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("tile", [1, 3, 7, 50, 1000])
def test_tiles_of_a_window_change_nothing(tile, after, make_problem, make_window, monkeypatch):
    problem = make_problem(50, make_window(before=9, after=after))
    expected = problem.solve("torch")
    monkeypatch.setattr(slots, "_tile_for_reach", lambda reach: tile)
    got = problem.solve("torch")
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=1e-12, atol=1e-12)


def test_chunk_length_changes_no_window(make_problem, make_window):
    problem = make_problem(50, make_window(before=9, chunk_length=11))
    expected = problem.solve("torch")
    for chunk_length in (1, 1000):
        window = replace(problem.window, chunk_length=chunk_length)
        for name, x in replace(problem, window=window).solve("torch").items():
            assert torch.equal(x, expected[name]), name


# ---- memory layouts ----


def with_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` ``[B, H, N, D]`` in another arrangement in memory."""
    if layout == "heads inside tokens":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "every other number":
        return torch.stack((x, torch.full_like(x, torch.nan)), dim=-1).flatten(-2)[..., ::2]
    if layout == "sizes outside":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    raise ValueError(layout)


@pytest.mark.parametrize("own_keys", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
@pytest.mark.parametrize("layout", ["heads inside tokens", "every other number", "sizes outside"])
def test_strides_of_inputs_and_gradients_change_nothing(
    layout, pattern, own_keys, make_problem, make_window
):
    problem = make_problem(37, make_window(pattern, 1), own_keys=own_keys)
    expected = problem.solve("torch")
    arranged = replace(
        problem,
        query=with_layout(problem.query, layout),
        key=None if problem.key is None else with_layout(problem.key, layout),
        value=with_layout(problem.value, layout),
        grad_out=with_layout(problem.grad_out, layout),
    )
    assert not arranged.query.is_contiguous()
    for name, x in arranged.solve("torch").items():
        torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-12)


def test_expanded_inputs_get_the_summed_gradient(make_problem, make_window):
    problem = make_problem(20, make_window())
    value = problem.value[:, :1].clone().requires_grad_()
    gradients = []
    for backend in ("reference", "torch"):
        shared = replace(problem, value=value.expand(-1, 2, -1, -1))
        gradients.append(torch.autograd.grad(shared.attend(backend)[0].sum(), value)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_an_output_changed_in_place_is_noticed(make_problem, make_window):
    problem = make_problem(20, make_window())
    out, _ = replace(problem, query=problem.query.requires_grad_()).attend("torch")
    with pytest.raises(RuntimeError, match="inplace"):  # noqa: PT012 (in either of the two lines)
        out.mul_(2.0)
        out.sum().backward()


# ---- gradients ----


@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["", "dropout"])
@pytest.mark.parametrize("own_keys", [True, False], ids=["own", "shared"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_gradcheck(pattern, own_keys, dropout, make_problem, make_window):
    window = make_window(pattern, 2, chunk_length=2, count_duplicates=False, dropout=dropout)
    problem = make_problem(5, window, batch=1, heads=1, size=2, own_keys=own_keys)
    names = [n for n in ("query", "key", "value") if getattr(problem, n) is not None]

    def out(*tensors: Tensor) -> Tensor:
        return replace(problem, **dict(zip(names, tensors, strict=True))).attend("torch")[0]

    leaves = [getattr(problem, n).requires_grad_() for n in names]
    assert torch.autograd.gradcheck(out, leaves, fast_mode=False)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_gradient_flows_through_lse(backend, make_problem, make_window):
    problem = make_problem(9, make_window())
    out, lse = replace(problem, query=problem.query.requires_grad_()).attend(backend)
    assert out.requires_grad
    assert not lse.requires_grad


def test_without_gradients_nothing_is_recorded(make_problem, make_window):
    problem = make_problem(9, make_window())
    with torch.no_grad():
        out, _ = replace(problem, query=problem.query.requires_grad_()).attend("torch")
    assert out.grad_fn is None


# ---- limits ----


def test_windows_wider_than_the_sequence_do_not_meet_empty_slots(make_problem, make_window):
    # Bucket numbers that, spaced by the window, come near the tag of empty slots, 2**29.
    problem = make_problem(20, make_window(before=8192, chunk_length=8), rounds=1)
    far = torch.full_like(problem.order.bucket, 32764)
    problem = replace(problem, order=replace(problem.order, bucket=far + problem.order.bucket))
    assert_equals_reference(problem, TOLERANCE[torch.float64])
