"""transformers' gradient checkpointing runs with and without the reversible path."""

from __future__ import annotations

import pytest
import torch

from reformer_hf import ReformerPreTrainedModel
from tests.layers.note_calls import note_calls
from tests.models.builders import ALL_DROPOUTS, HEAD_OF, Head, assert_equal_gradients, train_step


def switch(model: ReformerPreTrainedModel, on: bool) -> None:
    """Newer versions of transformers say activation checkpointing."""
    state = "enable" if on else "disable"
    for name in (f"activation_checkpointing_{state}", f"gradient_checkpointing_{state}"):
        if hasattr(model, name):
            getattr(model, name)()
            return
    raise AssertionError("transformers has no gradient checkpointing")


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
def test_checkpointing_changes_no_gradient(head: Head, reversible: bool) -> None:
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    batch = head.batch(2, 40)
    loss, expected = train_step(head, model, batch)
    switch(model, on=True)
    again, found = train_step(head, model, batch)
    assert torch.equal(again, loss)
    assert_equal_gradients(found, expected)
    switch(model, on=False)
    _, found = train_step(head, model, batch)
    assert_equal_gradients(found, expected)


def test_checkpointing_works_on_the_plain_path() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(reversible=False)
    seen: list[int] = []
    layer = model.reformer.stack.layers[0].feed_forward
    layer.register_forward_pre_hook(lambda *_: seen.append(1))
    train_step(head, model, head.batch(2, 20))
    assert len(seen) == 1
    switch(model, on=True)
    train_step(head, model, head.batch(2, 20))
    assert len(seen) == 3


@pytest.mark.parametrize("length", [20, 600])
def test_checkpointing_adds_no_recomputation_to_the_reversible_path(length: int) -> None:
    head = HEAD_OF["causal_lm"]
    counts = []
    for on in (False, True):
        model = head.build(reversible=True)
        switch(model, on=on)
        seen: list[int] = []
        note_calls(model.reformer.stack.layers[0].feed_forward, lambda seen=seen: seen.append(1))
        train_step(head, model, head.batch(2, length))
        counts.append(len(seen))
    assert counts[0] == counts[1]
