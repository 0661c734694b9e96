"""Hash functions of rows: drawn once, shared by rows with equal numbers of buckets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf.choices import HASH_FAMILIES
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.row_hashing import RowHasher, factors_of_rows

WINDOW = AttentionWindow("window", 4, 0, 4, causal=True, exclude_self=True)


def hasher(per_row: list[tuple[int, ...]], family: str, positions: int = 50) -> RowHasher:
    settings = HashSettings(3, 5, None, family, 1.5)
    return RowHasher(settings, per_row, positions)


def vectors(batch: int) -> Tensor:
    return torch.randn(batch, 2, 50, 8)


@pytest.mark.parametrize("family", HASH_FAMILIES)
def test_a_row_hashes_as_it_would_alone(family: str) -> None:
    per_row = [(4,), (2, 8), (1,), (4,)]
    x = vectors(4)
    together = hasher(per_row, family)(x)
    for row, factors in enumerate(per_row):
        alone = hasher([factors], family)(x[row : row + 1])
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("family", HASH_FAMILIES)
def test_rows_keep_their_hash_functions_when_they_move(family: str) -> None:
    x, rows = vectors(2), hasher([(4,), (8,)], family)
    before = rows(x)
    rows.take_rows([(8,), (8,), (4,)])
    assert torch.equal(rows(x[[1, 1, 0]]), before[[1, 1, 0]])


@pytest.mark.parametrize("family", HASH_FAMILIES)
def test_more_positions_leave_the_first_ones_alone(family: str) -> None:
    x, rows = vectors(1), hasher([(4,)], family)
    before = rows(x)
    rows.reach(5000)
    assert torch.equal(rows(x), before)


def test_buckets_suit_the_length_of_each_row_unless_configured() -> None:
    assert factors_of_rows(HashSettings(3, 5), WINDOW, [3, 8, 70]) == ((1,), (2,), (16,))
    assert factors_of_rows(HashSettings(3, 5, [2, 4]), WINDOW, [3, 8]) == ((2, 4), (2, 4))
