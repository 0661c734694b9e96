"""Activations stay where the gradients of parameters will need the memory later anyway."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.layers.stack import ReformerStack

LAYERS = ["lsh", "local", "full"]


@pytest.fixture
def model() -> ReformerForCausalLM:
    """Wide enough that the gradients of a layer take as much as some dozens of its tokens."""
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=30,
        hidden_size=64,
        num_attention_heads=2,
        attention_head_size=32,
        feed_forward_size=256,
        attn_layers=LAYERS,
        lsh_attn_chunk_length=8,
        hidden_dropout_prob=0.1,
        max_position_embeddings=4096,
    )
    return ReformerForCausalLM(config)


def count_calls(model: ReformerForCausalLM) -> list[str]:
    """The names of sub-layers, added to as they are called."""
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, FeedForward | SelfAttention):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


def train(model: ReformerForCausalLM, length: int) -> dict[str, Tensor]:
    """Gradients of one step."""
    torch.manual_seed(1)
    ids = torch.randint(0, 30, (1, length))
    model(ids, labels=ids).loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


@pytest.mark.parametrize(("length", "recomputed"), [(8, 0), (60, 4), (2000, 6)])
def test_short_inputs_are_computed_once_and_long_ones_twice(
    length: int, recomputed: int, model: ReformerForCausalLM
) -> None:
    calls = count_calls(model)
    train(model, length)
    assert len(calls) == 2 * len(LAYERS) + recomputed
    # Those that are computed again are the first ones, in reverse.
    assert calls[6:] == calls[:recomputed][::-1]


@pytest.mark.parametrize("length", [8, 60])
def test_the_gradients_are_the_same(
    length: int, model: ReformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(model, length)
    monkeypatch.setattr(ReformerStack, "_count_recomputed", lambda self, steps, x: len(steps))
    recomputed = train(model, length)
    assert kept.keys() == recomputed.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(grad, recomputed[name], rtol=1e-5, atol=1e-7, msg=name)


def test_nothing_is_kept_where_the_gradients_are_there_already(
    model: ReformerForCausalLM,
) -> None:
    calls = count_calls(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    train(model, 8)
    assert len(calls) == 4 * len(LAYERS)


def test_frozen_weights_leave_no_room(model: ReformerForCausalLM) -> None:
    calls = count_calls(model)
    model.reformer.stack.requires_grad_(False)
    train(model, 8)
    assert len(calls) == 4 * len(LAYERS)
