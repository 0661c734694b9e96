"""Accumulated gradients are those of the joined batch, for every head with a loss."""

from __future__ import annotations

import pytest
import torch

from tests.models.builders import (
    HEAD_OF,
    NO_DROPOUT,
    Batch,
    Head,
    assert_close_gradients,
    gradients,
    train_step,
)

ROWS, LENGTH = 4, 40
OPTIONS = {**NO_DROPOUT, "hash_seed": 3}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def row(batch: Batch, index: int) -> Batch:
    return {name: value[index : index + 1] for name, value in batch.items()}


@pytest.mark.parametrize("chunk_size", [0, 16], ids=["whole-logits", "chunked-logits"])
@pytest.mark.parametrize("as_tensor", [True, False], ids=["tensor", "int"])
@DTYPES
def test_four_accumulated_rows_equal_one_batch_of_four(
    head_with_loss: Head, chunk_size: int, as_tensor: bool, dtype: torch.dtype
) -> None:
    head = head_with_loss
    model = head.build(chunk_size_lm_head=chunk_size, **OPTIONS).to(dtype)
    batch = head.batch(ROWS, LENGTH)
    loss, expected = train_step(head, model, batch)
    items: int | torch.Tensor = head.num_items(batch)
    if as_tensor:
        items = torch.tensor(items)
    model.zero_grad()
    total = 0.0
    for index in range(ROWS):
        part = model(**row(batch, index), num_items_in_batch=items).loss
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert_close_gradients(gradients(model), expected)


def test_own_count_of_items_changes_nothing(head_with_loss: Head) -> None:
    head = head_with_loss
    model = head.build(**OPTIONS)
    batch = head.batch(ROWS, LENGTH)
    loss, expected = train_step(head, model, batch)
    again, found = train_step(head, model, batch, num_items_in_batch=head.num_items(batch))
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert_close_gradients(found, expected)


def test_loss_is_divided_by_the_items_asked_for(head_with_loss: Head) -> None:
    head = head_with_loss
    model = head.build(**OPTIONS).eval()
    batch = head.batch(ROWS, LENGTH)
    mean = model(**batch).loss.item()
    asked = model(**batch, num_items_in_batch=1000).loss.item()
    assert asked == pytest.approx(mean * head.num_items(batch) / 1000, rel=1e-6)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
@DTYPES
def test_every_problem_type_accumulates(problem: str, dtype: torch.dtype) -> None:
    head = HEAD_OF["sequence_classification"]
    model = head.build(problem_type=problem, **OPTIONS).to(dtype)
    batch = head.inputs(ROWS, LENGTH)
    batch["labels"] = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(1)).round()
    loss, expected = train_step(head, model, batch)
    model.zero_grad()
    total = 0.0
    for index in range(ROWS):
        part = model(**row(batch, index), num_items_in_batch=batch["labels"].numel()).loss
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-6)
    assert_close_gradients(gradients(model), expected)


def test_rows_without_labels_add_nothing() -> None:
    for name in ("causal_lm", "masked_lm", "token_classification", "seq2seq_lm"):
        head = HEAD_OF[name]
        model = head.build(**OPTIONS)
        batch = head.batch(1, LENGTH)
        batch["labels"] = torch.full_like(batch["labels"], -100)
        loss, found = train_step(head, model, batch)
        assert loss.item() == 0.0
        assert not any(g.any() for g in found.values())
