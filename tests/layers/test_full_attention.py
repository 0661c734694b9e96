"""Full and cross attention against the formula, with padding anywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from reformer_hf import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.full_attention import CrossAttention, FullSelfAttention
from reformer_hf.layers.heads import split_heads
from reformer_hf.ops.padding import Padding

SIZES = {"hidden_size": 24, "num_attention_heads": 3, "attention_head_size": 8}


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / 8**0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value


def masks() -> dict[str, Tensor]:
    ragged = torch.ones(3, 20, dtype=torch.bool)
    ragged[1, :7] = False
    ragged[2, 15:] = False
    holes = torch.ones(3, 20, dtype=torch.bool)
    holes[0, 5:9] = False
    holes[2, ::2] = False
    return {"none": torch.ones(3, 20, dtype=torch.bool), "both sides": ragged, "holes": holes}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", list(masks()))
def test_full_attention_is_softmax_over_the_real_tokens(causal: bool, name: str) -> None:
    layer = FullSelfAttention(ReformerConfig(**SIZES), 0, causal).eval()
    heads = [torch.randn(3, 3, 20, 8) for _ in range(3)]
    real = masks()[name]
    context = ForwardContext(Padding.from_attention_mask(real), hash_seed=1, dropout_seed=0)
    visible = real[:, None, None, :].expand(-1, -1, 20, -1)
    if causal:
        visible = visible & torch.ones(20, 20, dtype=torch.bool).tril()
    out = layer.attend(context, *heads)
    expected = formula(*heads, visible)
    for row in range(3):
        assert torch.allclose(out[row][:, real[row]], expected[row][:, real[row]], atol=1e-6)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_rows_of_padding_only_are_finite(causal: bool) -> None:
    layer = FullSelfAttention(ReformerConfig(**SIZES), 0, causal).eval()
    heads = [torch.randn(2, 3, 20, 8, requires_grad=True) for _ in range(3)]
    mask = torch.ones(2, 20)
    mask[1] = 0
    context = ForwardContext(Padding.from_attention_mask(mask), hash_seed=1, dropout_seed=0)
    for out in (layer.attend(context, *heads), layer.weights(context, *heads)):
        assert torch.isfinite(out).all()
        out.square().sum().backward()
    assert all(torch.isfinite(head.grad).all() for head in heads if head.grad is not None)


def cross(stream_merge: str = "mean") -> CrossAttention:
    config = ReformerSeq2SeqConfig(
        stream_merge=stream_merge, tie_word_embeddings=stream_merge == "mean", **SIZES
    )
    return CrossAttention(config, 0).eval()


@pytest.mark.parametrize("stream_merge", ["mean", "concat"])
@pytest.mark.parametrize("name", list(masks()))
def test_cross_attention_is_softmax_over_the_real_source(stream_merge: str, name: str) -> None:
    layer = cross(stream_merge)
    x, states = torch.randn(3, 9, 24), torch.randn(3, 20, 24 if stream_merge == "mean" else 48)
    real = masks()[name]
    context = ForwardContext(None, hash_seed=1, dropout_seed=0, encoder_real=real)
    query = split_heads(layer.query(layer.norm(x)), 3)
    key, value = split_heads(layer.key(states), 3), split_heads(layer.value(states), 3)
    expected = layer.output(formula(query, key, value, real[:, None, None, :]))
    assert torch.allclose(layer(x, states, context=context)[0], expected, atol=1e-6)


def test_cross_attention_weights_give_the_same_output() -> None:
    layer = cross()
    x, states, real = torch.randn(3, 9, 24), torch.randn(3, 20, 24), masks()["holes"]
    plain = ForwardContext(None, hash_seed=1, dropout_seed=0, encoder_real=real)
    out, weights = layer(x, states, context=replace(plain, output_attentions=True))
    expected, nothing = layer(x, states, context=plain)
    assert torch.allclose(out, expected, atol=1e-6)
    assert nothing is None
    assert weights is not None
    assert weights.shape == (3, 3, 9, 20)
    assert not weights.masked_select(~real[:, None, None, :]).any()


def test_cross_attention_to_a_source_of_padding_is_finite() -> None:
    layer = cross()
    context = ForwardContext(
        None, hash_seed=1, dropout_seed=0, encoder_real=torch.zeros(2, 20, dtype=torch.bool)
    )
    assert torch.isfinite(
        layer(torch.randn(2, 9, 24), torch.randn(2, 20, 24), context=context)[0]
    ).all()


def test_cross_attention_computes_keys_and_values_of_a_source_once() -> None:
    layer = cross()
    states, other = torch.randn(3, 20, 24), torch.randn(3, 20, 24)
    x = torch.randn(3, 9, 24)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    context = ForwardContext(None, hash_seed=1, dropout_seed=0, cross_cache=cache)
    first = layer(x, states, context=context)[0]
    assert cache.is_updated == {0: True}
    assert torch.equal(layer(x, other, context=context)[0], first)
    plain = ForwardContext(None, hash_seed=1, dropout_seed=0)
    assert torch.equal(layer(x, states, context=plain)[0], first)
    assert not torch.equal(layer(x, other, context=plain)[0], first)
