"""With every pair counted once, hashing approaches full attention as the rounds grow."""

from __future__ import annotations

import pytest
import torch

from reformer_hf.ops.shared_keys import normalize_keys
from tests.models.builders import HEAD_OF, random_ids

LENGTH = 48


def shared_full_attention(query_key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What LSH attention approximates: shared queries and keys, itself only if nothing else."""
    scores = query_key @ normalize_keys(query_key).transpose(-1, -2)
    length = scores.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    itself = torch.eye(length, dtype=torch.bool)
    scores = scores.masked_fill(later, -torch.inf).masked_fill(itself, -1e5)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("num_hashes", [1, 4, 64])
def test_model_with_more_rounds_is_closer_to_full_attention(
    num_hashes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = HEAD_OF["causal_lm"]
    # A window as long as the sequence, so that only the hash decides who sees whom.
    model = head.build(
        attn_layers=["lsh", "lsh"],
        num_buckets=4,
        lsh_attn_chunk_length=LENGTH,
        count_duplicates=False,
    ).eval()
    ids = random_ids(2, LENGTH, seed=1)
    with torch.no_grad():
        hashed = model(ids, num_hashes=num_hashes).logits
        for layer in model.reformer.stack.layers:
            monkeypatch.setattr(
                layer.attention,
                "attend",
                lambda context, query_key, value: shared_full_attention(query_key, value),
            )
        full = model(ids).logits
    difference = float((hashed - full).abs().max())
    if num_hashes == 64:
        assert difference <= 1e-3
    else:
        assert difference > 1e-2
