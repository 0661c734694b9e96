"""Heads are split without copying and merged by concatenation or by average."""

from __future__ import annotations

import torch

from reformer_hf.layers.heads import HeadMerge, split_heads


def test_a_head_is_a_slice_of_the_features_and_a_view() -> None:
    x = torch.randn(2, 5, 12)
    heads = split_heads(x, 3)
    assert heads.shape == (2, 3, 5, 4)
    for h in range(3):
        assert torch.equal(heads[:, h], x[..., 4 * h : 4 * (h + 1)])
    assert heads.data_ptr() == x.data_ptr()


def test_concatenation_undoes_the_split_before_it_projects() -> None:
    x = torch.randn(2, 5, 12)
    merge = HeadMerge("concat", 3, 4, 7)
    assert torch.allclose(merge(split_heads(x, 3)), merge.dense(x))
    assert merge.dense.weight.shape == (7, 12)


def test_average_projects_the_mean_of_the_heads() -> None:
    heads = torch.randn(2, 3, 5, 4)
    merge = HeadMerge("average", 3, 4, 7)
    assert torch.allclose(merge(heads), merge.dense(heads.mean(1)))
    assert merge.dense.weight.shape == (7, 4)
