"""Two processes under `accelerate launch` train as one does, with stock DDP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ecosystem.launch import launch_two
from tests.ecosystem.recipes import DATA_PARALLEL_HEADS, largest_difference, model_and_batch
from tests.models.builders import train_step


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found; started once for all tests here."""
    folder: Path = tmp_path_factory.mktemp("data_parallel")
    launch_two("data_parallel.py", folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", DATA_PARALLEL_HEADS)
def test_accumulated_gradients_of_two_processes_are_those_of_the_joined_batch(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    head, model, batch = model_and_batch(name)
    _, expected = train_step(head, model, batch)
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    assert size > 0.01  # so that the tolerance means something
    for rank in ranks:
        assert largest_difference(rank["gradients"][name], expected) <= 1e-5


def test_buckets_are_sent_while_earlier_layers_are_still_recomputed(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        events = rank["events"]
        layers = [index for kind, index in events if kind == "layer"]
        assert layers == [5, 4, 3, 2, 1, 0]
        first_layer = events.index(("layer", 0))
        before = [index for kind, index in events[:first_layer] if kind == "bucket"]
        behind = [index for kind, index in events[first_layer:] if kind == "bucket"]
        assert len(before) >= 3
        assert before == sorted(before)
        # The embedding is tied to the head, so that its gradient is complete only at the very end.
        assert len(before) > len(behind) >= 1
