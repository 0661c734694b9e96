"""What all tests share: a fixed random state, and fixtures that run a test once for every head."""

from __future__ import annotations

import os

import pytest
import torch

# Without a CUDA device Triton's kernels run in its interpreter. Triton decides that when it is
# imported, and torch imports it when it likes.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.models.builders import HEADS, Head


def _every(heads: list[Head]) -> list[object]:
    return [pytest.param(head, id=head.name) for head in heads]


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    """Every test starts from the same random state, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(params=_every(list(HEADS)))
def head(request: pytest.FixtureRequest) -> Head:
    """Every model class, the bare ones too."""
    chosen: Head = request.param
    return chosen


@pytest.fixture(params=_every([h for h in HEADS if h.task is not None]))
def head_with_loss(request: pytest.FixtureRequest) -> Head:
    """Every model class that computes a loss."""
    chosen: Head = request.param
    return chosen


@pytest.fixture(params=_every([h for h in HEADS if h.task in ("next_token", "token", "target")]))
def language_head(request: pytest.FixtureRequest) -> Head:
    """Every model class that predicts tokens of the vocabulary."""
    chosen: Head = request.param
    return chosen


@pytest.fixture(params=_every([h for h in HEADS if h.task in ("next_token", "target")]))
def generating_head(request: pytest.FixtureRequest) -> Head:
    """Every model class with `generate()`."""
    chosen: Head = request.param
    return chosen
