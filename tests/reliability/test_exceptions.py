"""An exception in the middle of a pass leaves nothing broken: the next step is right."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from reformer_hf import ReformerPreTrainedModel
from tests.layers.note_calls import note_calls
from tests.models.builders import ALL_DROPOUTS, HEAD_OF, Head, assert_equal_gradients, train_step


class Interruption(KeyboardInterrupt):
    """What a user's Ctrl-C raises."""


class CountedFailure:
    """A hook that raises at its `at`-th call and does nothing before and after."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.left, self.error = at, error

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("in the middle")


def layers_of(model: ReformerPreTrainedModel) -> list[nn.Module]:
    name = "decoder" if model.config.is_encoder_decoder else "stack"
    stack = next(m for n, m in model.named_modules() if n.rpartition(".")[2] == name)
    stack = getattr(stack, "stack", stack)
    return list(stack.layers)


def in_forward(model: ReformerPreTrainedModel, error: type[BaseException]) -> Any:
    """Fails in the second layer of the forward pass."""
    return layers_of(model)[1].feed_forward.register_forward_hook(CountedFailure(1, error))


def in_recomputation(model: ReformerPreTrainedModel, error: type[BaseException]) -> Any:
    """Fails when the backward pass computes the first layer again."""
    end = note_calls(layers_of(model)[0].feed_forward, CountedFailure(2, error))
    return SimpleNamespace(remove=end)


def in_gradient(model: ReformerPreTrainedModel, error: type[BaseException]) -> Any:
    """Fails when a gradient of the first layer is there, after those of the second."""
    weight = layers_of(model)[0].feed_forward.inner.weight
    return weight.register_hook(CountedFailure(1, error))


PLACES = pytest.mark.parametrize(
    "break_at", [in_forward, in_recomputation, in_gradient], ids=lambda place: place.__name__
)
ERRORS = pytest.mark.parametrize("error", [RuntimeError, Interruption], ids=lambda e: e.__name__)


def fail_once(
    head: Head,
    model: ReformerPreTrainedModel,
    break_at: Callable[..., Any],
    error: type[BaseException],
) -> None:
    handle = break_at(model, error)
    with pytest.raises(error, match="in the middle"):
        train_step(head, model, head.batch(2, 70))
    handle.remove()


@PLACES
@ERRORS
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_the_step_after_an_exception_is_right(
    name: str, break_at: Callable[..., Any], error: type[BaseException]
) -> None:
    head = HEAD_OF[name]
    options = (
        {**ALL_DROPOUTS, "decoder_attn_layers": ["full", "lsh"]} if head.seq2seq else (ALL_DROPOUTS)
    )
    model, untouched = head.build(**options), head.build(**options)
    fail_once(head, model, break_at, error)
    batch = head.batch(2, 50, seed=9)
    loss, actual = train_step(head, model, batch)
    expected_loss, expected = train_step(head, untouched, batch)
    assert torch.equal(loss, expected_loss)
    assert_equal_gradients(actual, expected)


@PLACES
def test_an_exception_leaves_the_random_state_and_autograd_as_they_were(
    break_at: Callable[..., Any],
) -> None:
    head = HEAD_OF["causal_lm"]
    model, untouched = head.build(**ALL_DROPOUTS), head.build(**ALL_DROPOUTS)
    batch = head.batch(2, 70)
    torch.manual_seed(7)
    with torch.no_grad():
        untouched(**batch)  # draws what a forward pass draws
    expected = torch.get_rng_state()
    fail_once(head, model, break_at, RuntimeError)
    if break_at is not in_forward:  # which draws less, as it ends early
        assert torch.equal(torch.get_rng_state(), expected)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@PLACES
def test_an_exception_keeps_no_streams_alive(break_at: Callable[..., Any]) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build()
    embedded = model.get_input_embeddings()(head.batch(2, 70)["input_ids"]).detach()
    inputs = embedded.clone().requires_grad_()
    alive = weakref.ref(inputs)
    handle = break_at(model, RuntimeError)
    with pytest.raises(RuntimeError, match="in the middle") as caught:
        model(inputs_embeds=inputs, labels=head.batch(2, 70)["labels"]).loss.backward()
    handle.remove()
    del caught  # with the frames of the failed pass
    del inputs
    gc.collect()
    assert alive() is None


def test_a_second_graph_outlives_an_exception_in_the_first() -> None:
    head = HEAD_OF["causal_lm"]
    model, untouched = head.build(), head.build()
    first, second = head.batch(2, 70), head.batch(2, 50, seed=9)
    torch.manual_seed(7)
    losses = [model(**batch).loss for batch in (first, second)]
    handle = in_gradient(model, RuntimeError)
    with pytest.raises(RuntimeError, match="in the middle"):
        losses[0].backward()
    handle.remove()
    model.zero_grad()
    losses[1].backward()
    torch.manual_seed(7)
    untouched(**first)
    untouched(**second).loss.backward()
    actual, expected = (
        {n: p.grad for n, p in m.named_parameters() if p.grad is not None}
        for m in (model, untouched)
    )
    assert_equal_gradients(actual, expected)


def test_a_graph_whose_backward_failed_cannot_be_used_as_if_it_had_not() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build()
    batch = head.batch(2, 70)
    loss, other = model(**batch).loss, model(**batch).loss
    handle = in_gradient(model, RuntimeError)
    with pytest.raises(RuntimeError, match="in the middle"):
        loss.backward()
    handle.remove()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
    other.backward()


@pytest.mark.parametrize("break_at", [in_recomputation, in_gradient])
def test_a_graph_that_was_kept_can_be_tried_again(break_at: Callable[..., Any]) -> None:
    head = HEAD_OF["causal_lm"]
    options = {**ALL_DROPOUTS, "chunk_size_feed_forward": 16}
    model, untouched = head.build(**options), head.build(**options)
    batch = head.batch(2, 70)
    torch.manual_seed(7)
    loss = model(**batch).loss
    handle = break_at(model, RuntimeError)
    with pytest.raises(RuntimeError, match="in the middle"):
        loss.backward(retain_graph=True)
    handle.remove()
    model.zero_grad()
    loss.backward()
    _, expected = train_step(head, untouched, batch)
    actual = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_equal_gradients(actual, expected)
