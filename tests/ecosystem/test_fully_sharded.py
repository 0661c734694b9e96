"""FSDP2: two processes that share every weight train as one process that has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ecosystem.launch import launch_two
from tests.ecosystem.recipes import (
    REFUSED,
    SHARDED_STEPS,
    WRAPPINGS,
    largest_difference,
    model_and_batch,
    sgd,
)
from tests.models.builders import train_step

CASES = [(wrapping, name) for wrapping, names in WRAPPINGS.items() for name in names]
CASES.append(("joint", "causal_lm"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found; started once for all tests here."""
    folder: Path = tmp_path_factory.mktemp("fully_sharded")
    launch_two("fully_sharded.py", folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("wrapping", "name"), CASES)
def test_gradients_of_every_step_are_those_of_one_process(
    wrapping: str, name: str, ranks: list[dict[str, Any]]
) -> None:
    head, model, batch = model_and_batch(name)
    optimizer = sgd(model)
    for step in range(SHARDED_STEPS):
        _, expected = train_step(head, model, batch)
        for rank in ranks:
            found = rank[f"{wrapping}-{name}"]["gradients"][step]
            assert largest_difference(found, expected) <= 1e-5
        optimizer.step()


def test_few_sub_layers_are_gathered_at_a_time(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["sub-layers-causal_lm"]["sub_layers"] == 6
        # The one that computes, and the next one fetched while it does.
        assert rank["sub-layers-causal_lm"]["gathered"] <= 2
        assert rank["root-causal_lm"]["gathered"] == 6


def test_in_bf16_the_reversible_path_is_as_near_to_fp32_as_the_plain_one(
    ranks: list[dict[str, Any]],
) -> None:
    head, model, batch = model_and_batch("causal_lm", attn_layers=["local"] * 3)
    _, expected = train_step(head, model, batch)
    for rank in ranks:
        errors = [
            largest_difference(rank[f"bf16-{reversible}"]["gradients"][0], expected)
            for reversible in (True, False)
        ]
        assert 0 < errors[0] <= 1.5 * errors[1]


@pytest.mark.parametrize("wrapping", REFUSED)
def test_sharding_other_modules_is_refused_and_says_what_to_shard(
    wrapping: str, ranks: list[dict[str, Any]]
) -> None:
    for rank in ranks:
        message = rank["refusals"][wrapping]
        assert "must be applied to the sub-layers" in message
        assert "_no_split_modules" in message
        assert REFUSED[wrapping] in message


def test_the_plain_path_takes_any_modules_sharded(ranks: list[dict[str, Any]]) -> None:
    head, model, batch = model_and_batch("causal_lm")
    _, expected = train_step(head, model, batch)
    for rank in ranks:
        found = rank["projections-plain"]["gradients"][0]
        assert largest_difference(found, expected) <= 1e-5
