"""Streams and activations stay where the gradients will need the memory later anyway."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForCausalLM
from reformer_hf.layers.feed_forward import FeedForward
from reformer_hf.layers.self_attention import SelfAttention
from reformer_hf.layers.stack import ReformerStack
from reformer_hf.ops.reversible import ReversibleStep

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


@pytest.mark.parametrize("length", [8, 60, 130, 400, 1000])
def test_the_gradients_are_the_same(
    length: int, model: ReformerForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(model, length)
    monkeypatch.setattr(ReformerStack, "_choose_kept", lambda self, steps, x: (len(steps), set()))
    recomputed = train(model, length)
    assert kept.keys() == recomputed.keys()
    for name, grad in kept.items():
        torch.testing.assert_close(grad, recomputed[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, set[int]]]:
    """What stacks choose to keep, added to as they do."""
    made: list[tuple[int, set[int]]] = []
    choose = ReformerStack._choose_kept

    def noting(self: ReformerStack, steps: list[ReversibleStep], x: Tensor) -> tuple[int, set[int]]:
        made.append(choose(self, steps, x))
        return made[-1]

    monkeypatch.setattr(ReformerStack, "_choose_kept", noting)
    return made


def test_streams_go_first_and_those_of_the_costliest_products_before_others(
    model: ReformerForCausalLM, choices: list[tuple[int, set[int]]]
) -> None:
    for length in (130, 400, 1000, 4000):
        model(torch.zeros(1, length, dtype=torch.int64))
    # The feed-forward layers are the odd ones.
    assert choices == [(6, {0, 1, 2, 3, 4, 5}), (6, {1, 2, 3, 4, 5}), (6, {5, 3}), (6, set())]


@given(
    spared=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    saved=st.integers(0, 12),
    length=st.integers(1, 60),
)
def test_no_more_is_kept_than_the_gradients_will_take(
    spared: list[int], saved: int, length: int
) -> None:
    config = ReformerConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, attention_head_size=8,
        feed_forward_size=16, attn_layers=["local"],
    )  # fmt: skip
    stack = ReformerStack(config, ["local"], causal=True)
    gradients = sum(4 * p.numel() for p in stack.parameters())
    steps = [ReversibleStep(torch.tanh, (), saved=64 * saved, spared=count) for count in spared]
    recomputed, streams = stack._choose_kept(steps, torch.zeros(1, length, 16))
    assert all(k < recomputed and spared[k] for k in streams)
    kept = 64 * length * (len(streams) + saved * (len(steps) - recomputed))
    assert kept <= gradients
    if recomputed and saved:
        # What is left over is less than one more step would take.
        assert kept + 64 * length * saved > gradients or any(spared)


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
