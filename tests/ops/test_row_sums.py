"""Row sums are the same wherever in the row the weights stand.

Tokens that come later move the tiles of a sorted order, so the same weights stand in other places
of their row then. What is rounded differently because of it changes earlier outputs.
"""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.tile_arithmetic import row_sums


@pytest.mark.parametrize("shift", [1, 7, 32, 63, 64])
def test_shifted_rows_have_the_same_sums_bit_for_bit(shift: int) -> None:
    weights = torch.rand(500, 64)
    expected = row_sums(torch.nn.functional.pad(weights, (0, 64)))
    shifted = torch.nn.functional.pad(weights, (shift, 64 - shift))
    assert torch.equal(row_sums(shifted), expected)
