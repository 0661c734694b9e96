"""Some of a layer's heads compute what they compute among all of them, wherever that is."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.head_share import HeadShare, as_numbers, from_numbers, numbering
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention
from reformer_hf.ops.lsh_attention import lsh_attention

BATCH, HEADS, LENGTH, SIZE = 2, 4, 70, 32
PARTS = [HeadShare(0, HEADS), HeadShare(2, HEADS)]


def some(*names: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(names))
    return [torch.randn((BATCH, HEADS, LENGTH, SIZE), generator=generator) for _ in names]


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("family", ["angular", "euclidean", "random"])
def test_lsh_attention_of_some_heads(backend: str, family: str) -> None:
    query_key, value = some("query_key", "value")

    def attend(heads: HeadShare | None, *inputs: torch.Tensor) -> torch.Tensor:
        settings = HashSettings(2, seed=5, num_buckets=4, family=family, heads=heads)
        window = AttentionWindow(
            *("window", 8, 0, 8, True, True), dropout=0.3, dropout_seed=9, heads=heads
        )
        return lsh_attention(*inputs, settings, window=window, backend=backend)[0]

    whole = attend(None, query_key, value)
    for share in PARTS:
        own = slice(share.first, share.first + 2)
        found = attend(share, query_key[:, own], value[:, own])
        torch.testing.assert_close(found, whole[:, own], atol=2e-5, rtol=1e-4)
    other = attend(PARTS[0], query_key[:, 2:], value[:, 2:])
    assert not torch.allclose(other, whole[:, 2:], atol=1e-2)


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_hybrid_attention_of_some_heads(backend: str) -> None:
    query, key, value = some("query", "key", "value")

    def attend(heads: HeadShare | None, *inputs: torch.Tensor) -> torch.Tensor:
        window = HybridWindow(
            *(8, 2, 2, 8), num_buckets=4, hash_seed=5, dropout=0.3, dropout_seed=9, heads=heads
        )
        return hybrid_attention(*inputs, window, backend=backend)[0]

    whole = attend(None, query, key, value)
    for share in PARTS:
        own = slice(share.first, share.first + 2)
        found = attend(share, query[:, own], key[:, own], value[:, own])
        torch.testing.assert_close(found, whole[:, own], atol=2e-5, rtol=1e-4)


def test_a_share_goes_through_a_schema() -> None:
    for share in (None, HeadShare(0, 4), HeadShare(3, 4)):
        assert from_numbers(*as_numbers(share)) == share
    assert numbering(None, 4) == (0, 4)
    assert numbering(HeadShare(2, 4), 2) == (2, 4)
