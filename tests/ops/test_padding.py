from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_hf.ops.padding import Padding


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_a_mask_of_ones_is_no_padding(dtype):
    assert Padding.from_attention_mask(torch.ones(2, 3, dtype=dtype)) is None


def test_no_mask_is_no_padding():
    assert Padding.from_attention_mask(None) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32], ids=str)
def test_real_tokens_and_lengths_are_read_from_the_mask(dtype):
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]]).to(dtype)
    padding = Padding.from_attention_mask(mask)
    assert padding is not None
    assert padding.lengths == (2, 0, 3)
    assert torch.equal(padding.real, mask.bool())


def test_positions_of_padding_are_those_of_the_nearest_token_before():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    padding = Padding.from_attention_mask(mask)
    assert padding is not None
    expected = [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert padding.positions().tolist() == expected


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_real_tokens_are_numbered_consecutively(row):
    padding = Padding(torch.tensor([row]), (sum(row),))
    assert padding.positions()[padding.real].tolist() == list(range(sum(row)))


def test_lengths_that_a_compiled_graph_did_not_read_are_read_later() -> None:
    real = torch.tensor([[True, True, False], [True, False, False]])
    assert Padding(real, None).count() == (2, 1)
    assert Padding(real, (2, 1)).count() == (2, 1)
