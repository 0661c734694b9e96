"""The size of feed-forward slices changes memory, not results."""

from __future__ import annotations

import pytest
import torch

from tests.models.builders import (
    HEAD_OF,
    NO_DROPOUT,
    Head,
    assert_close_gradients,
    train_step,
)


@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
def test_every_slice_size_gives_the_same_loss_and_gradients(head: Head, reversible: bool) -> None:
    options = {"reversible": reversible, "hash_seed": 1, **NO_DROPOUT}
    # Double precision: a slice of one token is multiplied by another routine, which rounds
    # differently.
    batch = head.batch(2, 90)
    model = head.build(chunk_size_feed_forward=0, **options).double()
    loss, expected = train_step(head, model, batch)
    for chunk_size in (1, 64, 90, 4096):
        model.config.chunk_size_feed_forward = chunk_size
        again, found = train_step(head, model, batch)
        assert again.item() == pytest.approx(loss.item(), rel=1e-9)
        assert_close_gradients(found, expected)


@pytest.mark.parametrize("chunk_size", [0, 1, 64])
def test_inner_activations_are_as_long_as_a_slice(chunk_size: int) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(chunk_size_feed_forward=chunk_size)
    lengths: list[int] = []
    inner = model.reformer.stack.layers[0].feed_forward.inner
    inner.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[1]))
    with torch.no_grad():
        model(**head.inputs(2, 130))
    assert lengths == {0: [130], 1: [1] * 130, 64: [64, 64, 2]}[chunk_size]
