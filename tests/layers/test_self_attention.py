"""The kinds of self-attention: output is weights times values, and windows are as stated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.full_attention import FullSelfAttention
from reformer_hf.layers.hybrid_self_attention import HybridSelfAttention
from reformer_hf.layers.local_self_attention import LocalSelfAttention
from reformer_hf.layers.lsh_self_attention import LSHSelfAttention
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.ops.padding import Padding

LENGTH = 50
CLASSES: dict[str, type[SelfAttention]] = {
    "lsh": LSHSelfAttention,
    "local": LocalSelfAttention,
    "full": FullSelfAttention,
    "hybrid": HybridSelfAttention,
}
KINDS = pytest.mark.parametrize("kind", list(CLASSES.values()), ids=list(CLASSES))
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def layer_of(kind: type[SelfAttention], causal: bool, **options: Any) -> SelfAttention:
    fields = {"lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "num_hashes": 3, **options}
    config = ReformerConfig(hidden_size=24, num_attention_heads=3, attention_head_size=8, **fields)
    return kind(config, 0, causal).eval()


def heads_of(layer: SelfAttention, x: Tensor) -> list[Tensor]:
    return [p.unflatten(-1, (3, 8)).transpose(1, 2) for p in layer.project(layer.norm(x))]


def padding() -> Padding:
    mask = torch.ones(2, LENGTH)
    mask[1, :13] = 0
    found = Padding.from_attention_mask(mask)
    assert found is not None
    return found


@KINDS
@CAUSAL
@pytest.mark.parametrize("padded", [True, False], ids=["padded", "unpadded"])
def test_output_is_weights_times_values(
    kind: type[SelfAttention], causal: bool, padded: bool
) -> None:
    layer = layer_of(kind, causal)
    context = ForwardContext(padding() if padded else None, hash_seed=1, dropout_seed=0)
    heads = heads_of(layer, torch.randn(2, LENGTH, 24))
    real = torch.ones(2, LENGTH, dtype=torch.bool) if not padded else padding().real
    weights = layer.weights(context, *heads)
    out = layer.attend(context, *heads)
    expected = weights @ heads[-1]
    for row in range(2):
        assert torch.allclose(out[row][:, real[row]], expected[row][:, real[row]], atol=1e-5)
        assert not weights[row][:, real[row]][:, :, ~real[row]].any()
    if causal:
        assert not weights.triu(1).any()


@pytest.mark.parametrize(
    ("before", "after", "causal", "seen"),
    [
        (1, None, True, (8, 0)),
        (2, None, True, (16, 0)),
        (1, None, False, (8, 8)),
        (2, None, False, (16, 16)),
        (1, 0, False, (8, 0)),
        (1, 2, False, (8, 16)),
        (1, 2, True, (8, 0)),
    ],
)
def test_local_windows_reach_as_far_as_configured(
    before: int, after: int | None, causal: bool, seen: tuple[int, int]
) -> None:
    layer = layer_of(
        LocalSelfAttention, causal, local_num_chunks_before=before, local_num_chunks_after=after
    )
    context = ForwardContext(None, hash_seed=1, dropout_seed=0)
    weights = layer.weights(context, *heads_of(layer, torch.randn(1, LENGTH, 24)))
    visible = (weights > 0)[0, 0, 25].nonzero().squeeze(-1)
    assert (25 - int(visible.min()), int(visible.max()) - 25) == seen
    assert len(visible) == sum(seen) + 1


def test_lsh_layers_see_no_more_than_rounds_times_window() -> None:
    layer = layer_of(LSHSelfAttention, causal=True, num_buckets=2)
    context = ForwardContext(None, hash_seed=1, dropout_seed=0)
    weights = layer.weights(context, *heads_of(layer, torch.randn(1, LENGTH, 24)))
    visible = (weights > 0).sum(-1)
    assert int(visible.max()) > 8
    assert int(visible.max()) <= 3 * 8
    # A token sees itself only if it sees nothing else, which the first one does.
    itself = weights.diagonal(dim1=-2, dim2=-1)
    assert (itself[..., 0] == 1).all()
    assert not (itself * (visible > 1)).any()


def test_hybrid_layers_see_sinks_and_local_window_and_more_with_every_round() -> None:
    layer = layer_of(HybridSelfAttention, causal=True, sink_tokens=2, num_buckets=[2, 2])
    heads = heads_of(layer, torch.randn(1, LENGTH, 24))
    position = torch.arange(LENGTH)
    distance = position.unsqueeze(1) - position
    always = (distance >= 0) & ((distance <= 8) | (position < 2))
    seen = always.sum(-1)
    for rounds in (1, 4):
        context = ForwardContext(None, hash_seed=1, dropout_seed=0, num_hashes=rounds)
        visible = layer.weights(context, *heads) > 0
        assert visible[:, :, always].all()
        before, seen = seen, visible.sum(-1)
        assert (seen >= always.sum(-1)).all()
        assert seen.sum() > before.expand_as(seen).sum()
        assert int((seen - always.sum(-1)).max()) <= 8 * rounds


@pytest.mark.parametrize("kind", [LSHSelfAttention, HybridSelfAttention], ids=["lsh", "hybrid"])
def test_rounds_and_buckets_of_a_call_take_precedence(kind: type[SelfAttention]) -> None:
    layer = layer_of(kind, causal=True, num_hashes=1, num_buckets=2)
    heads = heads_of(layer, torch.randn(1, LENGTH, 24))
    context = ForwardContext(None, hash_seed=1, dropout_seed=0, num_hashes=4, num_buckets=8)
    other = layer_of(kind, causal=True, num_hashes=4, num_buckets=8)
    expected = other.attend(ForwardContext(None, hash_seed=1, dropout_seed=0), *heads)
    assert torch.equal(layer.attend(context, *heads), expected)


@KINDS
def test_residual_is_the_merged_and_projected_attention(kind: type[SelfAttention]) -> None:
    layer = layer_of(kind, causal=True)
    x = torch.randn(2, LENGTH, 24)
    context = ForwardContext(None, hash_seed=1, dropout_seed=0)
    expected = layer.output(layer.attend(context, *heads_of(layer, x)))
    assert torch.equal(layer(x, context=context)[0], expected)


@KINDS
@pytest.mark.parametrize("rows", [[0], [1], [0, 1]], ids=str)
def test_weights_are_returned_when_asked_for(kind: type[SelfAttention], rows: list[int]) -> None:
    layer = layer_of(kind, causal=False)
    x = torch.randn(2, LENGTH, 24)[rows]
    context = ForwardContext(None, hash_seed=1, dropout_seed=0)
    out, weights = layer(x, context=replace(context, output_attentions=True))
    assert weights is not None
    assert weights.shape == (len(rows), 3, LENGTH, LENGTH)
    plain, nothing = layer(x, context=context)
    assert nothing is None
    assert torch.allclose(out, plain, atol=1e-5)


@pytest.mark.parametrize("kind", list(CLASSES))
def test_attention_dropout_is_replayed_by_its_seed_and_off_in_evaluation(kind: str) -> None:
    options = {f"{kind}_attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.0}
    layer = layer_of(CLASSES[kind], causal=True, **options)
    heads = heads_of(layer, torch.randn(1, LENGTH, 24))

    def attend(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer.attend(ForwardContext(None, hash_seed=1, dropout_seed=seed), *heads)

    still = attend(1)
    layer.train()
    assert torch.equal(attend(1), attend(1))
    assert not torch.equal(attend(1), attend(2))
    layer.eval()
    assert torch.equal(attend(2), still)
