"""Hooks on layers and sub-layers: they fire, see tensors with a history, and may exchange them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reformer_hf import (
    ReformerConfig,
    ReformerForCausalLM,
    ReformerForConditionalGeneration,
    ReformerSeq2SeqConfig,
)

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_attention_heads": 2, "attention_head_size": 16,
    "feed_forward_size": 64, "attn_layers": ["local", "lsh", "full"], "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 512,
}  # fmt: skip
IDS = torch.arange(2, 50).view(1, -1)
MERGES = pytest.mark.parametrize("merge", ["mean", "concat"])


def build(**options: Any) -> ReformerForCausalLM:
    torch.manual_seed(0)
    return ReformerForCausalLM(ReformerConfig(**SIZES, **options)).train()


def step(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(1)
    loss = model(IDS, labels=IDS).loss
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), list(grads)


def layers_of(model: ReformerForCausalLM) -> list[nn.Module]:
    return list(model.reformer.stack.layers)


@MERGES
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_looking_at_a_layer_changes_neither_loss_nor_gradients(
    place: int, reversible: bool, merge: str
) -> None:
    options = {"stream_merge": merge, "tie_word_embeddings": merge == "mean"}
    model = build(reversible=reversible, **options)
    expected_loss, expected = step(model)
    seen: list[Tensor] = []
    layer = layers_of(model)[place]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.register_forward_hook(lambda _, __, output: seen.append(output))
    loss, grads = step(model)
    before, after = seen
    width = 64 if merge == "concat" else 32
    assert before.shape == after.shape == (1, 48, width)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_what_a_layer_returns_is_the_hidden_state_and_the_loss_depends_on_it() -> None:
    model = build().eval()
    seen: list[Tensor] = []
    layers_of(model)[1].register_forward_hook(lambda _, __, output: seen.append(output))
    out = model(IDS, labels=IDS, output_hidden_states=True)
    (activation,) = seen
    torch.testing.assert_close(activation, out.hidden_states[2], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.loss, activation)
    # Against a finite difference in the direction of the gradient.
    direction = gradient / gradient.norm()
    losses = []
    for sign in (-1.0, 1.0):
        moved = copy.deepcopy(model)
        layer = layers_of(moved)[1]
        layer._forward_hooks.clear()
        layer.register_forward_hook(lambda _, __, output, s=sign: output + s * 0.05 * direction)
        losses.append(moved(IDS, labels=IDS).loss.item())
    slope = (losses[1] - losses[0]) / 0.1
    assert slope == pytest.approx(gradient.norm().item(), rel=0.1)


def test_a_hook_that_steers_a_layer_steers_generation_too() -> None:
    model = build().eval()
    plain = model.generate(IDS[:, :8], max_new_tokens=12, do_sample=False)
    wanted = model.lm_head.weight[30].detach()
    last = layers_of(model)[-1]
    handle = last.register_forward_hook(lambda _, __, output: output + 1e3 * wanted)
    steered = model.generate(IDS[:, :8], max_new_tokens=12, do_sample=False)
    assert (steered[:, 8:] == 30).all()
    handle.remove()
    assert torch.equal(model.generate(IDS[:, :8], max_new_tokens=12, do_sample=False), plain)


def test_backward_hooks_of_layers_fire() -> None:
    model, seen = build(), []
    layers_of(model)[1].register_full_backward_hook(lambda _, __, grads: seen.append(grads[0]))
    step(model)
    assert len(seen) == 1
    assert seen[0].any()


def test_a_sub_layer_that_is_watched_has_a_history() -> None:
    model = build()
    _, expected = step(model)
    seen: list[Tensor] = []
    layers_of(model)[0].feed_forward.inner.register_forward_hook(
        lambda _, __, output: seen.append(output)
    )
    torch.manual_seed(1)
    loss = model(IDS, labels=IDS).loss
    (activation,) = seen
    assert torch.autograd.grad(loss, activation, retain_graph=True)[0].any()
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(model.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(seen) == 1


def test_every_module_of_a_model_that_holds_weights_is_called_or_is_a_plain_list() -> None:
    config = ReformerSeq2SeqConfig(**SIZES, decoder_attn_layers=["lsh", "full"])
    models = [build(), ReformerForConditionalGeneration(config)]
    for model in models:
        called: set[str] = set()
        for name, module in model.named_modules():
            note = called.add
            module.register_forward_hook(lambda *_, name=name, note=note: note(name))
        model(IDS, labels=IDS).loss.backward()
        silent = {
            name
            for name, module in model.named_modules()
            if name not in called and any(True for _ in module.parameters())
        }
        assert {type(model.get_submodule(name)) for name in silent} <= {nn.ModuleList}


def test_outputs_of_modules_are_tensors_tuples_or_named_outputs() -> None:
    model, kinds = build(), set()
    for module in model.modules():
        module.register_forward_hook(lambda _, __, output: kinds.add(type(output)))
    model(IDS, labels=IDS)
    assert all(issubclass(kind, Tensor | tuple | dict) for kind in kinds)


@pytest.mark.parametrize("name", ["attention", "attention.output.dense", "feed_forward.outer"])
def test_backward_hooks_of_sub_layers_fire_and_may_change_gradients(name: str) -> None:
    found = []
    for reversible in (True, False):
        model = build(reversible=reversible)
        module = layers_of(model)[0].get_submodule(name)
        module.register_full_backward_hook(lambda _, grads, __: (0.0 * grads[0], *grads[1:]))
        found.append(step(model)[1])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_pre_hook_of_a_layer_may_exchange_its_input() -> None:
    model = build().eval()
    plain = model(IDS).logits
    first = layers_of(model)[0]
    handle = first.register_forward_pre_hook(lambda _, inputs: inputs[0] + torch.linspace(0, 3, 32))
    moved = model(IDS).logits
    handle.remove()
    first.register_forward_pre_hook(lambda _, inputs: (inputs[0],))
    torch.testing.assert_close(model(IDS).logits, plain, rtol=1e-4, atol=1e-4)
    assert (moved - plain).abs().max() > 1e-2


@pytest.mark.parametrize("place", ["layer", "attention", "feed_forward"])
@pytest.mark.parametrize("what", ["another shape", "no tensor"])
def test_a_hook_that_returns_something_else_is_refused(what: str, place: str) -> None:
    model = build()
    layer = layers_of(model)[1]
    module = layer if place == "layer" else layer.get_submodule(place)
    wrong = torch.ones(1, 48, 1) if what == "another shape" else "text"
    module.register_forward_hook(lambda *_: (wrong, None) if place == "attention" else wrong)
    with pytest.raises(ValueError, match=r"must return .*\[1, 48, 32\].*got"):
        model(IDS)
