"""Gradients however a training loop asks for them."""

from __future__ import annotations

import pytest
import torch

from tests.models.builders import (
    ALL_DROPOUTS,
    HEAD_OF,
    Head,
    assert_close_gradients,
    assert_equal_gradients,
    gradients,
    train_step,
)

REVERSIBLE = pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])


@REVERSIBLE
def test_two_forward_passes_before_one_backward_pass_add_up(head: Head, reversible: bool) -> None:
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batches = [head.batch(2, 40, seed=1), head.batch(1, 25, seed=11)]
    expected: dict[str, torch.Tensor] = {}
    for seed, batch in enumerate(batches):
        for name, gradient in train_step(head, model, batch, seed=seed)[1].items():
            expected[name] = expected.get(name, torch.zeros(())) + gradient
    model.zero_grad()
    losses = []
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        losses.append(head.objective(model(**batch)))
    (losses[0] + losses[1]).backward()
    assert_close_gradients(gradients(model), expected)


@REVERSIBLE
def test_interleaved_backward_passes_do_not_mix(reversible: bool) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batches = [head.batch(2, 40, seed=1), head.batch(1, 25, seed=11)]
    expected = [train_step(head, model, b, seed=s)[1] for s, b in enumerate(batches)]
    losses = []
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        losses.append(head.objective(model(**batch)))
    for i in (0, 1):
        model.zero_grad()
        losses[i].backward()
        assert_equal_gradients(gradients(model), expected[i])


@REVERSIBLE
def test_a_retained_graph_gives_the_same_gradients_twice(reversible: bool) -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    loss = head.objective(model(**head.batch(2, 30)))
    loss.backward(retain_graph=True)
    first = gradients(model)
    model.zero_grad()
    loss.backward()
    assert_equal_gradients(gradients(model), first)


@REVERSIBLE
def test_an_evaluation_between_forward_and_backward_disturbs_nothing(reversible: bool) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batch = head.batch(2, 40)
    _, expected = train_step(head, model, batch)
    model.zero_grad()
    torch.manual_seed(7)
    loss = head.objective(model(**batch))
    with torch.no_grad():
        model(**head.batch(1, 13, seed=5))
    torch.randn(100)
    loss.backward()
    assert_equal_gradients(gradients(model), expected)


@REVERSIBLE
def test_backward_leaves_the_random_state_alone(reversible: bool) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    loss = head.objective(model(**head.batch(2, 40)))
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)


@REVERSIBLE
def test_frozen_embeddings_leave_the_other_gradients_as_they_are(
    head: Head, reversible: bool
) -> None:
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batch = head.batch(2, 40)
    _, expected = train_step(head, model, batch)
    frozen = {n for n, _ in model.named_parameters() if "embeddings" in n}
    assert frozen
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    _, found = train_step(head, model, batch)
    kept = {name: g for name, g in expected.items() if name not in frozen}
    assert_equal_gradients(found, kept)


@REVERSIBLE
def test_a_trained_head_on_a_frozen_body_gets_its_gradients(
    head_with_loss: Head, reversible: bool
) -> None:
    model = head_with_loss.build(reversible=reversible, tie_word_embeddings=False, **ALL_DROPOUTS)
    batch = head_with_loss.batch(2, 40)
    _, expected = train_step(head_with_loss, model, batch)
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    _, found = train_step(head_with_loss, model, batch)
    assert 0 < len(found) < len(expected)
    assert_equal_gradients(found, {name: expected[name] for name in found})


@REVERSIBLE
@pytest.mark.parametrize("part", ["feed_forward", "query_key", "stack.layers.1", "position"])
def test_a_single_trained_part_gets_its_gradients(part: str, reversible: bool) -> None:
    head = HEAD_OF["masked_lm"]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batch = head.batch(2, 40)
    _, expected = train_step(head, model, batch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    _, found = train_step(head, model, batch)
    assert found
    assert_equal_gradients(found, {n: g for n, g in expected.items() if part in n})


@REVERSIBLE
def test_a_fully_frozen_model_computes_a_loss_without_a_graph(reversible: bool) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(reversible=reversible).requires_grad_(False)
    loss = head.objective(model(**head.batch(2, 40)))
    assert torch.isfinite(loss)
    assert not loss.requires_grad


def test_gradient_hooks_of_a_layer_fire_once_and_from_last_to_first() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(attn_layers=["local"] * 4)
    fired: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    head.objective(model(**head.batch(2, 20))).backward()
    assert sorted(fired) == sorted(dict(model.named_parameters()))
    layers = [int(name.split(".")[3]) for name in fired if ".layers." in name]
    assert layers == sorted(layers, reverse=True)


def test_what_forward_hooks_see_is_computed_once_and_has_a_history() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(hidden_dropout_prob=0.0, hash_seed=1)
    seen: list[torch.Tensor] = []
    layer = model.reformer.stack.layers[0].feed_forward
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    loss = head.objective(model(**head.batch(2, 20)))
    (activation,) = seen
    (gradient,) = torch.autograd.grad(loss, activation, retain_graph=True)
    assert gradient.any()
    loss.backward()
    assert len(seen) == 1
