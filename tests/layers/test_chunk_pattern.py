"""What the ``chunk`` pattern adds to a batch: enough for the original's neighbours, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerModel
from reformer_hf.layers import chunk_pattern

# (LSH chunk, local chunk): one a multiple of the other, either way, and without a common divisor.
CHUNKS = [(4, 32), (32, 4), (8, 24), (5, 7), (9, 4), (4, 9)]
REACHES = {"before": (1, 0), "both": (1, 1), "two before": (2, 0), "after": (0, 1), "none": (0, 0)}


def config_with(chunks: tuple[int, int], reach: tuple[int, int] = (1, 0), **options: Any) -> Any:
    lsh, local = chunks
    before, after = reach
    return ReformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_attention_heads=2,
        attn_layers=["lsh", "local"],
        num_hashes=2,
        max_position_embeddings=512,
        attention_pattern="chunk",
        exact_reversible=False,
        lsh_attn_chunk_length=lsh,
        local_attn_chunk_length=local,
        lsh_num_chunks_before=before,
        lsh_num_chunks_after=after,
        local_num_chunks_before=before,
        local_num_chunks_after=after,
        **options,
    )


def states(model: ReformerModel, ids: Tensor, mask: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]


# In fp32 it shows in a decoder how often, by hashing, a token has met itself.
@pytest.mark.parametrize(
    ("is_decoder", "dtype", "tolerance"),
    [(True, torch.float64, 1e-9), (False, torch.float64, 1e-9), (True, torch.float32, 1e-5)],
    ids=["decoder", "encoder", "decoder-fp32"],
)
@pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)
@pytest.mark.parametrize("chunks", CHUNKS, ids="lsh{0[0]}-local{0[1]}".format)
def test_tokens_see_what_they_see_at_the_length_of_the_original(
    chunks, reach, is_decoder, dtype, tolerance, monkeypatch
):
    model = ReformerModel(config_with(chunks, reach, is_decoder=is_decoder)).to(dtype).eval()
    for length in (6, 10, 17, 40):
        ids = torch.randint(0, 50, (2, length))
        mask = torch.ones_like(ids)
        mask[1, : length // 3] = 0
        found = states(model, ids, mask)
        with monkeypatch.context() as patched:
            patched.setattr(chunk_pattern, "_sufficient_length", lambda *a: a[-1])
            expected = states(model, ids, mask)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunks", [(64, 4096), (4096, 64), (64, 4099)], ids=str)
def test_few_tokens_stay_few_beside_a_long_chunk(chunks):
    config = config_with(chunks)
    full = chunk_pattern.padded_length(config, {"lsh", "local"}, 100)
    assert full >= 4096
    assert chunk_pattern._sufficient_length(config, {"lsh", "local"}, 100, full) <= 3 * 64
