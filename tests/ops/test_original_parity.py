"""The ``chunk`` pattern is that of transformers' Reformer, layer by layer.

Both sides get the same weights and the same rotations. The original's modules serve as they are,
but for one thing: in fp64 it would draw other rotations, so it hashes in fp32, as we always do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ReformerConfig as OriginalConfig
from transformers.models.reformer.modeling_reformer import (
    LocalSelfAttention as OriginalLocal,
)
from transformers.models.reformer.modeling_reformer import (
    LSHSelfAttention as OriginalLSH,
)

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import (
    HashSettings,
    apply_projections,
    draw_projections,
    factorize_buckets,
)
from reformer_hf.ops.local_attention import local_attention
from reformer_hf.ops.lsh_attention import lsh_attention, lsh_attention_weights
from reformer_hf.ops.padding import Padding
from reformer_hf.ops.row_hashing import buckets_for_length

BATCH, HEADS, SIZE, CHUNK = 2, 3, 8, 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# (decoder?, chunks before, chunks after)
REACHES = {
    "decoder": (True, 1, 0),
    "decoder-wide": (True, 2, 1),
    "encoder": (False, 1, 1),
}
REACH = pytest.mark.parametrize("reach", REACHES.values(), ids=REACHES)


class HashesInFp32(OriginalLSH):
    def _hash_vectors(self, vectors: Tensor, *rest: Any, **options: Any) -> Tensor:
        return super()._hash_vectors(vectors.float(), *rest, **options)


def config(reach: tuple[bool, int, int], **options: Any) -> OriginalConfig:
    decoder, before, after = reach
    return OriginalConfig(
        is_decoder=decoder,
        hidden_size=20,
        num_attention_heads=HEADS,
        attention_head_size=SIZE,
        lsh_attn_chunk_length=CHUNK,
        lsh_num_chunks_before=before,
        lsh_num_chunks_after=after,
        local_attn_chunk_length=CHUNK,
        local_num_chunks_before=before,
        local_num_chunks_after=after,
        lsh_attention_probs_dropout_prob=0.0,
        local_attention_probs_dropout_prob=0.0,
        hash_seed=5,
        **options,
    )


def hidden_states(length: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(BATCH, length, 20, dtype=dtype, requires_grad=True)


def split_heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, SIZE)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def window(reach: tuple[bool, int, int], exclude_self: bool) -> AttentionWindow:
    decoder, before, after = reach
    return AttentionWindow("chunk", before, after, CHUNK, decoder, exclude_self)


def lsh_arguments(reach: tuple[bool, int, int], rounds: int, num_buckets: Any) -> dict[str, Any]:
    return {
        # Explicit factors: ours would split a large number where the original does not.
        "settings": HashSettings(
            rounds, 5, [num_buckets] if isinstance(num_buckets, int) else num_buckets
        ),
        "window": window(reach, exclude_self=True),
    }


def assert_same_gradients(ours: Tensor, theirs: Tensor, leaves: list[Tensor], tol: float) -> None:
    weight = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, leaves, weight),
        torch.autograd.grad(theirs, leaves, weight),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=tol, atol=tol)


@DTYPES
@REACH
@pytest.mark.parametrize("num_buckets", [4, [2, 4]], ids=str)
@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_lsh_attention_equals_the_original_layer(rounds, num_buckets, reach, dtype):
    module = HashesInFp32(config(reach, num_hashes=rounds, num_buckets=num_buckets))
    module = module.to(dtype).eval()
    # On a short ring, chunks often meet the same tokens in the neighbouring round.
    for length in (2 * CHUNK, 6 * CHUNK):
        x = hidden_states(length, dtype)
        theirs = module(x).hidden_states
        query_key, value = split_heads(module.query_key(x)), split_heads(module.value(x))
        ours, _ = lsh_attention(query_key, value, **lsh_arguments(reach, rounds, num_buckets))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(merge_heads(ours), theirs, rtol=tolerance, atol=tolerance)
        # In fp32 the original's gradients pass through its rounded sums of rounds.
        if dtype == torch.float64:
            leaves = [x, module.query_key.weight, module.value.weight]
            assert_same_gradients(merge_heads(ours), theirs, leaves, tolerance)


@REACH
def test_short_sequences_attend_in_one_chunk_as_the_original(reach):
    module = HashesInFp32(config(reach, num_hashes=2, num_buckets=4)).double().eval()
    for length in (1, 5, CHUNK):
        x = hidden_states(length, torch.float64)
        query_key, value = split_heads(module.query_key(x)), split_heads(module.value(x))
        ours, _ = lsh_attention(query_key, value, **lsh_arguments(reach, 2, 4))
        theirs = module(x).hidden_states
        torch.testing.assert_close(merge_heads(ours), theirs, rtol=1e-9, atol=1e-9)


@REACH
def test_padded_lsh_attention_equals_the_original_at_real_tokens(reach):
    module = HashesInFp32(config(reach, num_hashes=2, num_buckets=4)).double().eval()
    x = hidden_states(4 * CHUNK, torch.float64)
    mask = torch.ones(BATCH, 4 * CHUNK)
    mask[0, 20:] = 0.0
    mask[1, :3] = 0.0
    theirs = module(x, attention_mask=mask).hidden_states
    query_key, value = split_heads(module.query_key(x)), split_heads(module.value(x))
    padding = Padding.from_attention_mask(mask)
    ours, _ = lsh_attention(query_key, value, padding=padding, **lsh_arguments(reach, 2, 4))
    real = mask.bool()
    torch.testing.assert_close(merge_heads(ours)[real], theirs[real], rtol=1e-9, atol=1e-9)


@DTYPES
def test_weights_equal_the_output_with_the_originals_rounding(dtype):
    arguments = {**lsh_arguments(REACHES["decoder"], 4, 4), "padding": None}
    query_key, value = torch.randn(2, BATCH, HEADS, 3 * CHUNK, SIZE, dtype=dtype)
    weights = lsh_attention_weights(query_key, value, **arguments)
    out, _ = lsh_attention(query_key, value, **arguments)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(weights @ value, out, rtol=tolerance, atol=tolerance)


def test_the_originals_rounding_is_visible_and_left_out_where_it_has_no_counterpart():
    # In fp32 the weights of a token that sees only itself do not sum to 1 in the original.
    arguments = lsh_arguments(REACHES["decoder"], 4, 4)
    query_key, value = torch.randn(2, BATCH, HEADS, 3 * CHUNK, SIZE)
    first = [
        lsh_attention(query_key, value, **{**arguments, "window": changed})[0][:, :, 0]
        for changed in (
            arguments["window"],
            AttentionWindow("chunk", 1, 0, CHUNK, True, True, count_duplicates=False),
            AttentionWindow("window", CHUNK, 0, CHUNK, True, True),
        )
    ]
    assert 1e-3 < ((first[0] - value[:, :, 0]) / value[:, :, 0]).abs().max() < 1e-2
    torch.testing.assert_close(first[1], value[:, :, 0])
    torch.testing.assert_close(first[2], value[:, :, 0])


@DTYPES
@REACH
def test_local_attention_equals_the_original_layer(reach, dtype):
    module = OriginalLocal(config(reach)).to(dtype).eval()
    for length in (5, CHUNK, 5 * CHUNK):
        x = hidden_states(length, dtype)
        theirs = module(x).hidden_states
        query, key, value = (split_heads(f(x)) for f in (module.query, module.key, module.value))
        ours, _ = local_attention(query, key, value, window=window(reach, exclude_self=False))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(merge_heads(ours), theirs, rtol=tolerance, atol=tolerance)
        leaves = [x, module.query.weight, module.key.weight, module.value.weight]
        assert_same_gradients(merge_heads(ours), theirs, leaves, tolerance)


@REACH
def test_padded_local_attention_equals_the_original_at_real_tokens(reach):
    module = OriginalLocal(config(reach)).double().eval()
    x = hidden_states(4 * CHUNK, torch.float64)
    mask = torch.ones(BATCH, 4 * CHUNK)
    mask[0, 20:] = 0.0
    mask[1, :3] = 0.0
    theirs = module(x, attention_mask=mask).hidden_states
    query, key, value = (split_heads(f(x)) for f in (module.query, module.key, module.value))
    ours, _ = local_attention(
        query,
        key,
        value,
        window=window(reach, exclude_self=False),
        padding=Padding.from_attention_mask(mask),
    )
    real = mask.bool()
    torch.testing.assert_close(merge_heads(ours)[real], theirs[real], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_buckets", [2, 8, [4, 6]], ids=str)
def test_hashing_equals_the_originals(num_buckets):
    module = OriginalLSH(config(REACHES["decoder"], num_hashes=3, num_buckets=num_buckets))
    vectors = torch.randn(BATCH, HEADS, 40, SIZE)
    total = num_buckets if isinstance(num_buckets, int) else num_buckets[0] * num_buckets[1]
    theirs = module._hash_vectors(vectors, 3, None).unflatten(-1, (3, 40))
    theirs = theirs - total * torch.arange(3).view(-1, 1)
    drawn = draw_projections(HashSettings(3, 5), factorize_buckets(num_buckets), HEADS, SIZE)
    ours = apply_projections(vectors, drawn)
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:config.num_buckets is not set")
@pytest.mark.parametrize("chunks", [2, 3, 4, 7, 8, 100])
def test_as_many_buckets_are_chosen_as_by_the_original(chunks):
    reach = REACHES["decoder"]
    module = OriginalLSH(config(reach, num_buckets=None, max_position_embeddings=4096))
    module._set_num_buckets(chunks * CHUNK)
    chosen = module.num_buckets
    total = chosen if isinstance(chosen, int) else chosen[0] * chosen[1]
    assert buckets_for_length(chunks * CHUNK, window(reach, exclude_self=True)) == total
