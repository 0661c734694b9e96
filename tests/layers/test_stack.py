"""A stack is its sub-layers on two streams, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from reformer_hf import ReformerConfig, ReformerSeq2SeqConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.stack import ReformerLayer, ReformerStack

SIZES = {
    "hidden_size": 24,
    "num_attention_heads": 3,
    "attention_head_size": 8,
    "feed_forward_size": 32,
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
    # Plain sums, so that the formula below is exactly what is computed.
    "exact_reversible": False,
}
KINDS = ["local", "lsh", "full"]
CONTEXT = ForwardContext(None, hash_seed=1, dropout_seed=0)


def encoder(**options: object) -> ReformerStack:
    config = ReformerConfig(attn_layers=KINDS, **{**SIZES, **options})
    return ReformerStack(config, KINDS, causal=False).eval()


def decoder() -> ReformerStack:
    config = ReformerSeq2SeqConfig(decoder_attn_layers=KINDS, **SIZES)
    return ReformerStack(config, KINDS, causal=True, decoder=True).eval()


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
@pytest.mark.parametrize("merge", ["mean", "concat"])
def test_encoder_layers_add_attention_to_one_stream_and_feed_forward_to_the_other(
    reversible: bool, merge: str
) -> None:
    stack = encoder(reversible=reversible, stream_merge=merge, tie_word_embeddings=merge == "mean")
    x = torch.randn(2, 40, 24)
    first, second = x, x
    for layer in stack.layers:
        first = first + layer.attention(second, context=CONTEXT)[0]
        second = second + layer.feed_forward(first)
    merged = (first + second) / 2 if merge == "mean" else torch.cat((first, second), -1)
    out = stack(x, CONTEXT).last_hidden_state
    assert torch.allclose(out, stack.norm(merged), atol=1e-6)


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
def test_every_sub_layer_of_a_decoder_adds_to_the_stream_whose_turn_it_is(reversible: bool) -> None:
    stack = decoder()
    stack.config.reversible = reversible
    x, source = torch.randn(2, 40, 24), torch.randn(2, 15, 24)
    streams: list[Tensor] = [x, x]
    step = 0
    for layer in stack.layers:
        for function in (
            lambda s, layer=layer: layer.attention(s, context=CONTEXT)[0],
            lambda s, layer=layer: layer.cross_attention(s, source, context=CONTEXT)[0],
            layer.feed_forward,
        ):
            streams[step % 2] = streams[step % 2] + function(streams[1 - step % 2])
            step += 1
    expected = stack.norm((streams[0] + streams[1]) / 2)
    out = stack(x, CONTEXT, encoder_states=source).last_hidden_state
    assert torch.allclose(out, expected, atol=1e-6)


def test_the_grid_moves_results_by_no_more_than_its_size() -> None:
    stack = encoder()
    x = torch.randn(2, 40, 24)
    with torch.no_grad():
        plain = stack(x, CONTEXT).last_hidden_state
        stack.config.exact_reversible = True
        exact = stack(x, CONTEXT).last_hidden_state
    assert not torch.equal(plain, exact)
    assert (plain - exact).abs().max() <= 64 * stack.config.residual_grid


def test_stack_has_one_layer_for_every_kind_in_order() -> None:
    names = [type(layer.attention).__name__ for layer in encoder().layers]
    assert names == ["LocalSelfAttention", "LSHSelfAttention", "FullSelfAttention"]
    assert all(layer.cross_attention is None for layer in encoder().layers)
    assert all(layer.cross_attention is not None for layer in decoder().layers)
    assert [layer.attention.layer_index for layer in encoder().layers] == [0, 1, 2]


def test_a_decoder_layer_needs_the_configuration_of_one() -> None:
    with pytest.raises(ValueError, match=r"needs a ReformerSeq2SeqConfig, got ReformerConfig"):
        ReformerLayer(ReformerConfig(**SIZES), "lsh", 0, causal=True, decoder=True)


def test_decoder_feed_forward_has_its_own_size() -> None:
    config = ReformerSeq2SeqConfig(decoder_feed_forward_size=17, **SIZES)
    layer = ReformerLayer(config, "full", 0, causal=True, decoder=True)
    assert layer.feed_forward.inner.out_features == 17
    layer = ReformerLayer(config, "full", 0, causal=False, decoder=False)
    assert layer.feed_forward.inner.out_features == 32


def test_final_dropout_acts_in_training_only() -> None:
    stack = encoder(hidden_dropout_prob=0.5)
    x = torch.randn(2, 40, 24)
    assert not (stack(x, CONTEXT).last_hidden_state == 0).any()
    assert (stack.train()(x, CONTEXT).last_hidden_state == 0).float().mean() > 0.3


def test_sub_layers_under_fsdp1_are_refused() -> None:
    # FSDP1 itself cannot be built without an accelerator.
    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(wrapper)
    stack = encoder()
    stack.layers[0].feed_forward = wrapper
    with pytest.raises(ValueError, match=r"`fully_shard` must be .*, got .*: that is FSDP1"):
        stack(torch.randn(1, 9, 24), CONTEXT)
