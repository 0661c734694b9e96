"""What changes between a forward and its backward pass changes no gradient, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from reformer_hf import ReformerConfig, ReformerForCausalLM
from reformer_hf.layers.module_state import ModuleState

# Short enough that the forward pass keeps everything, and too long for that.
LENGTHS = pytest.mark.parametrize("length", [60, 3000])
Change = Callable[[ReformerForCausalLM], None]


def build(reversible: bool) -> ReformerForCausalLM:
    torch.manual_seed(0)
    config = ReformerConfig(
        vocab_size=60, hidden_size=32, num_attention_heads=2, attention_head_size=16,
        feed_forward_size=64, attn_layers=["local", "lsh", "full"], hidden_dropout_prob=0.1,
        max_position_embeddings=4096, reversible=reversible,
    )  # fmt: skip
    return ReformerForCausalLM(config).train()


def both(length: int, run: Callable[[ReformerForCausalLM, Tensor], list[Tensor]]) -> None:
    """A run gives the same tensors with and without reversible layers."""
    found = []
    for reversible in (True, False):
        model = build(reversible)
        torch.manual_seed(5)
        found.append(run(model, torch.randint(2, 60, (1, length))))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def evaluate(model: ReformerForCausalLM) -> None:
    model.eval()


def drop_more(model: ReformerForCausalLM) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9


def exchange_a_module(model: ReformerForCausalLM) -> None:
    model.reformer.stack.layers[0].feed_forward.outer = nn.Linear(64, 32)


def configure(model: ReformerForCausalLM) -> None:
    model.config.num_hashes, model.config.lsh_attn_chunk_length = 4, 16


def add_a_hook(model: ReformerForCausalLM) -> None:
    model.reformer.stack.layers[1].feed_forward.inner.register_forward_hook(lambda *a: 3.0 * a[2])


def freeze(model: ReformerForCausalLM) -> None:
    model.reformer.stack.requires_grad_(False)


@LENGTHS
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("change", [evaluate, drop_more, exchange_a_module, configure, add_a_hook])
def test_the_backward_pass_computes_with_what_the_forward_pass_found(
    change: Change, checkpointing: bool, length: int
) -> None:
    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        if checkpointing and model.config.reversible:
            model.reformer.stack.gradient_checkpointing = True
        parameters = list(model.parameters())
        loss = model(ids, labels=ids).loss
        change(model)
        return list(torch.autograd.grad(loss, parameters))

    both(length, run)


@LENGTHS
def test_weights_frozen_before_the_backward_pass_keep_what_was_recorded(length: int) -> None:
    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        loss = model(ids, labels=ids).loss
        freeze(model)
        loss.backward()
        assert not any(p.requires_grad for p in model.reformer.stack.parameters())
        return gradients(model)

    both(length, run)


def test_what_changed_in_between_is_there_again_after_the_backward_pass() -> None:
    model, ids = build(True), torch.randint(2, 60, (1, 3000))
    loss = model(ids, labels=ids).loss
    for change in (evaluate, drop_more, exchange_a_module):
        change(model)
    new = model.reformer.stack.layers[0].feed_forward.outer
    loss.backward()
    assert not any(module.training for module in model.modules() if module is not new)
    assert model.reformer.stack.layers[0].feed_forward.outer is new
    assert new.weight.grad is None
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.9}


@LENGTHS
def test_two_modes_before_one_backward_pass(length: int) -> None:
    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        first = model(ids, labels=ids).loss
        second = model.eval()(ids, labels=ids).loss
        (first + second).backward()
        return gradients(model.train())

    both(length, run)


@LENGTHS
def test_substituted_weights_get_their_gradients(length: int) -> None:
    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        start = {name: p.detach() for name, p in model.named_parameters()}
        leaves = {n: (p + 0.02 * torch.randn_like(p)).requires_grad_() for n, p in start.items()}
        # After an inner step, as in meta-learning: no leaves, but functions of them.
        fast = {name: 0.9 * p for name, p in leaves.items()}
        loss = torch.func.functional_call(model, fast, (ids,), {"labels": ids}).loss
        found = torch.autograd.grad(loss, [*leaves.values()])
        assert all(p.grad is None for p in model.parameters())
        return list(found)

    both(length, run)


@LENGTHS
def test_parametrized_weights_that_are_cached(length: int) -> None:
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 1.5 * weight

    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        for layer in model.reformer.stack.layers:
            parametrize.register_parametrization(layer.feed_forward.inner, "weight", Scaled())
        with parametrize.cached():
            model(ids, labels=ids).loss.backward()
        return gradients(model)

    both(length, run)


@LENGTHS
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_weights_whose_computation_moves_on_with_every_call(
    norm: Callable[[nn.Module], nn.Module], length: int
) -> None:
    def run(model: ReformerForCausalLM, ids: Tensor) -> list[Tensor]:
        torch.manual_seed(3)
        for layer in model.reformer.stack.layers:
            norm(layer.feed_forward.inner)
            norm(layer.attention.output.dense)
        torch.manual_seed(4)
        loss = model(ids, labels=ids).loss + model(ids[:, :30], labels=ids[:, :30]).loss
        loss.backward()
        return [*gradients(model), *(b.clone() for b in model.buffers())]

    both(length, run)


@LENGTHS
@pytest.mark.parametrize("how", ["in place", "other data"])
def test_a_weight_that_was_overwritten_is_named(how: str, length: int) -> None:
    model, ids = build(True), torch.randint(2, 60, (1, length))
    loss = model(ids, labels=ids).loss
    weight = model.reformer.stack.layers[1].feed_forward.inner.weight
    if how == "in place":
        with torch.no_grad():
            weight.mul_(1.1)
    else:
        weight.data = 1.1 * weight.data
    expected = (
        r"the weight `inner\.weight` of a FeedForward was changed .* `config\.reversible=False`"
    )
    with pytest.raises(RuntimeError, match=expected):
        loss.backward()
    assert all(p.grad is None for p in model.reformer.stack.layers[1].parameters())


def test_containers_that_change_in_place_are_seen_and_brought_back() -> None:
    module = nn.Linear(2, 2)
    module.active, module.scales = ["a"], {"a": 1.0}
    state = ModuleState(module)
    module.active.append("b")
    module.scales["a"] = 2.0
    module.extra = "new"
    with state.reinstated():
        assert (module.active, module.scales) == (["a"], {"a": 1.0})
        assert not hasattr(module, "extra")
    assert (module.active, module.scales, module.extra) == (["a", "b"], {"a": 2.0}, "new")
