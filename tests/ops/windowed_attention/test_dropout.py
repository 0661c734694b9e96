from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reformer_hf.ops.windowed_attention.dropout import keep_mask, key_codes, query_codes


def mask(
    dropout: float, *, seed: int = 3, row: int = 0, hash_round: int = 0, length: int = 256
) -> Tensor:
    """``[N, N]`` bool: which pairs are kept."""
    positions = torch.arange(length)
    queries = query_codes(seed, torch.tensor([row]), torch.tensor([hash_round]), positions)
    return keep_mask(queries.unsqueeze(-1), key_codes(seed, positions), dropout)


def agreement(a: Tensor, b: Tensor) -> float:
    return (a == b).double().mean().item()


@pytest.mark.parametrize("dropout", [0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_pair_is_kept_with_the_complementary_probability(dropout):
    kept = mask(dropout, length=1000)
    sigma = (dropout * (1.0 - dropout) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1.0 - dropout)) <= 5.0 * sigma


def test_rows_and_columns_are_dropped_evenly():
    kept = mask(0.3, length=1000).double()
    sigma = (0.3 * 0.7 / 1000) ** 0.5
    for fraction in (kept.mean(dim=0), kept.mean(dim=1)):
        assert (fraction - 0.7).abs().max() < 5.0 * sigma
        assert abs(fraction.std().item() / sigma - 1.0) < 0.2


@pytest.mark.parametrize("change", ["seed", "row", "hash_round"])
def test_seeds_rows_and_rounds_drop_independently(change):
    # Two independent masks agree with probability 0.7^2 + 0.3^2 = 0.58.
    masks = [mask(0.3, **{change: i}) for i in range(6)]
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert abs(agreement(first, second) - 0.58) < 0.01


def test_neighbouring_pairs_are_dropped_independently():
    kept = mask(0.3, length=1000)
    assert abs(agreement(kept[1:], kept[:-1]) - 0.58) < 0.005
    assert abs(agreement(kept[:, 1:], kept[:, :-1]) - 0.58) < 0.005
    assert abs(agreement(kept, kept.T) - 0.58) < 0.005


def test_a_pair_does_not_depend_on_the_order_in_which_pairs_are_visited():
    whole = mask(0.3)
    queries, keys = torch.randperm(256)[:100], torch.randperm(256)
    codes = query_codes(3, torch.tensor([0]), torch.tensor([0]), queries)
    part = keep_mask(codes.unsqueeze(-1), key_codes(3, keys), 0.3)
    assert torch.equal(part, whole[queries][:, keys])


def test_inputs_are_left_as_they_are():
    positions = torch.arange(7, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    codes = query_codes(3, zero, zero, positions), key_codes(3, positions)
    copies = [c.clone() for c in codes]
    keep_mask(*codes, 0.5)
    assert torch.equal(positions, torch.arange(7, dtype=torch.int32))
    assert all(torch.equal(a, b) for a, b in zip(codes, copies, strict=True))


@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_forward_and_backward_drop_the_same_pairs(pattern, make_problem, make_window):
    size = 24
    window = make_window(pattern, 2, dropout=0.4, dropout_seed=5)
    problem = make_problem(size, window, batch=1, heads=2, size=size, rounds=2)
    unit = torch.eye(size, dtype=torch.float64).expand_as(problem.value)
    # The output of unit values is the weights W, the values' gradient of dO = 1 is their transpose.
    results = replace(problem, value=unit, grad_out=unit).solve("torch")
    weights = results["out"]
    assert (weights == 0.0).sum() > (replace_dropout(problem, 0.0).solve("torch")["dv"] == 0).sum()
    torch.testing.assert_close(results["dv"], weights.transpose(-1, -2), rtol=1e-12, atol=1e-12)


def replace_dropout(problem, dropout: float):
    """The same problem with unit values and another dropout."""
    unit = torch.eye(problem.value.shape[2], dtype=torch.float64).expand_as(problem.value)
    window = replace(problem.window, dropout=dropout)
    return replace(problem, value=unit, grad_out=unit, window=window)


def test_equal_seeds_repeat_the_output_and_others_do_not(make_problem, make_window):
    problem = make_problem(30, make_window(dropout=0.4, dropout_seed=5))
    out, lse = problem.attend("torch")
    again, _ = problem.attend("torch")
    other, other_lse = replace(problem, window=replace(problem.window, dropout_seed=6)).attend(
        "torch"
    )
    assert torch.equal(out, again)
    assert not torch.equal(out, other)
    assert torch.equal(lse, other_lse)  # dropout acts on the weights, after the softmax


def test_outputs_average_to_the_one_without_dropout(make_problem, make_window):
    problem = make_problem(20, make_window(dropout=0.3))
    expected, _ = replace(problem, window=replace(problem.window, dropout=0.0)).attend("torch")
    outs = torch.stack([
        replace(problem, window=replace(problem.window, dropout_seed=s)).attend("torch")[0]
        for s in range(300)
    ])  # fmt: skip
    error = (outs.mean(dim=0) - expected).abs() / (outs.std(dim=0) / 300**0.5 + 1e-12)
    assert error.max() < 5.0


def test_the_global_random_state_is_neither_read_nor_written(
    make_problem, make_window, untouched_random_state
):
    problem = make_problem(20, make_window(dropout=0.3))
    with untouched_random_state:
        first = problem.solve("torch")
    torch.rand(1)
    assert torch.equal(problem.solve("torch")["out"], first["out"])
