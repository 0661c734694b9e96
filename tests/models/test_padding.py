"""Padding, the order of a batch and the other rows in it change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerPreTrainedModel
from tests.models.builders import (
    HEAD_OF,
    IGNORED,
    LAYER_MIXES,
    NO_DROPOUT,
    Head,
    pad_rows,
    random_ids,
)

TOLERANCE = 1e-5
# With windows of 8 tokens these have 1, 16, 4, 32 and 8 buckets.
LENGTHS = (5, 131, 37, 300, 64)

MIXES = pytest.mark.parametrize("mix", LAYER_MIXES, ids=["+".join(m) for m in LAYER_MIXES])
SIDES = pytest.mark.parametrize("sides", ["r", "l", "rl"], ids=["right", "left", "both"])


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    return [random_ids(length, seed=20 + length) for length in lengths]


def decoder_inputs(head: Head, batch: int) -> dict[str, Tensor]:
    """The same target for every row."""
    if not head.seq2seq:
        return {}
    return {"decoder_input_ids": random_ids(1, 19, seed=5).expand(batch, -1)}


def alone(head: Head, model: ReformerPreTrainedModel, row: Tensor) -> Tensor:
    """Scores of one row without any padding."""
    return head.scores(model(row.unsqueeze(0), **decoder_inputs(head, 1)))[0]


def assert_rows_as_alone(
    head: Head, model: ReformerPreTrainedModel, rows: list[Tensor], sides: str, extra: int
) -> None:
    """Real tokens of a padded batch get the scores that they get alone."""
    ids, mask = pad_rows(rows, sides, extra)
    with torch.no_grad():
        batched = head.scores(model(ids, attention_mask=mask, **decoder_inputs(head, len(rows))))
        for i, row in enumerate(rows):
            expected = alone(head, model, row)
            actual = batched[i]
            if not head.seq2seq and actual.dim() == 2:
                actual = actual[mask[i] == 1]
            assert (actual - expected).abs().max() <= TOLERANCE, f"row of {len(row)} tokens"


@SIDES
def test_padding_changes_no_scores(head: Head, sides: str) -> None:
    assert_rows_as_alone(head, head.build().eval(), rows_of(), sides, extra=11)


@MIXES
@SIDES
@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "seq2seq_lm"])
def test_padding_changes_nothing_in_any_kind_of_layer(
    name: str, mix: tuple[str, ...], sides: str
) -> None:
    head = HEAD_OF[name]
    model = head.build(attn_layers=list(mix), num_hashes=3).eval()
    assert_rows_as_alone(head, model, rows_of(), sides, extra=3)


@pytest.mark.parametrize(
    "options",
    [
        {"hash_family": "euclidean"},
        {"hash_family": "random"},
        {"num_buckets": [2, 4]},
        {"count_duplicates": False, "num_hashes": 4},
        {"attention_backend": "reference"},
        {"axial_pos_embds": False},
        {"classifier_pooling": "first"},
        {"head_merge": "average"},
        {"exact_reversible": False},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()),
)
@pytest.mark.parametrize("name", ["causal_lm", "sequence_classification"])
def test_padding_changes_nothing_with_any_option(name: str, options: dict[str, Any]) -> None:
    head = HEAD_OF[name]
    assert_rows_as_alone(head, head.build(**options).eval(), rows_of(), "rl", extra=7)


def test_padding_between_real_tokens_changes_nothing() -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build().eval()
    row = random_ids(90, seed=3)
    place = torch.arange(90) + (torch.arange(90) > 30) * 4 + (torch.arange(90) > 70) * 9
    ids, mask = torch.zeros(1, 110, dtype=torch.int64), torch.zeros(1, 110)
    ids[0, place], mask[0, place] = row, 1.0
    with torch.no_grad():
        actual = model(ids, attention_mask=mask).logits[0, place]
        assert (actual - alone(head, model, row)).abs().max() <= TOLERANCE


def test_content_of_padding_is_never_read(head: Head) -> None:
    model = head.build().eval()
    ids, mask = pad_rows(rows_of(), "rl", extra=4)
    other = torch.where(mask == 1, ids, random_ids(*ids.shape, seed=9))
    more = decoder_inputs(head, len(LENGTHS))
    with torch.no_grad():
        first, second = (head.scores(model(x, attention_mask=mask, **more)) for x in (ids, other))
    if not head.seq2seq and first.dim() == 3:
        first, second = first[mask == 1], second[mask == 1]
    assert (first - second).abs().max() <= TOLERANCE


def test_batch_order_and_company_change_no_scores(head: Head) -> None:
    model = head.build().eval()
    ids, mask = pad_rows(rows_of(), "rl")
    more = decoder_inputs(head, len(LENGTHS))
    order = torch.tensor([3, 0, 4, 2, 1])
    some = torch.tensor([1, 4])
    with torch.no_grad():
        scores = head.scores(model(ids, attention_mask=mask, **more))
        for chosen in (order, some):
            part = {name: x[chosen] for name, x in more.items()}
            again = head.scores(model(ids[chosen], attention_mask=mask[chosen], **part))
            real = mask[chosen] == 1
            expected, actual = scores[chosen], again
            if not head.seq2seq and scores.dim() == 3:
                expected, actual = expected[real], actual[real]
            assert (actual - expected).abs().max() <= TOLERANCE


@MIXES
@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "seq2seq_lm"])
def test_a_row_of_padding_only_is_finite_and_leaves_the_others_alone(
    name: str, mix: tuple[str, ...]
) -> None:
    head = HEAD_OF[name]
    model = head.build(attn_layers=list(mix), **NO_DROPOUT).train()
    ids, mask = pad_rows([*rows_of((40, 70)), random_ids(0, seed=1)], "rl")
    more = decoder_inputs(head, 3)
    loss_input = {"labels": random_ids(3, 19, seed=6)} if head.seq2seq else {"labels": ids}
    output = model(ids, attention_mask=mask, **loss_input)
    assert torch.isfinite(head.scores(output)).all()
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad():
        with_it = head.scores(model(ids, attention_mask=mask, **more))
        for i, row in enumerate(rows_of((40, 70))):
            actual = with_it[i] if head.seq2seq else with_it[i][mask[i] == 1]
            assert (actual - alone(head, model, row)).abs().max() <= TOLERANCE


def test_a_row_of_padding_only_is_finite_for_every_head(head: Head) -> None:
    model = head.build().eval()
    ids, mask = pad_rows([random_ids(30, seed=1), random_ids(0, seed=1)], "r")
    output = model(ids, attention_mask=mask, **decoder_inputs(head, 2))
    assert torch.isfinite(head.scores(output)).all()


@SIDES
def test_padded_targets_change_no_scores(sides: str) -> None:
    head = HEAD_OF["seq2seq_lm"]
    model = head.build(decoder_attn_layers=["full", "lsh", "local"]).eval()
    rows = rows_of((5, 60, 33))
    ids, mask = pad_rows(rows, sides, extra=6)
    source = random_ids(1, 45, seed=2)
    with torch.no_grad():
        batched = model(
            source.expand(3, -1), decoder_input_ids=ids, decoder_attention_mask=mask
        ).logits
        for i, row in enumerate(rows):
            expected = model(source, decoder_input_ids=row.unsqueeze(0)).logits[0]
            assert (batched[i][mask[i] == 1] - expected).abs().max() <= TOLERANCE


def pad_labelled(head: Head, left: int, right: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same two rows with labels, without and with padding on both sides."""
    plain = head.batch(2, 45)
    padded = dict(plain)
    for name, value in plain.items():
        if name in ("start_positions", "end_positions"):
            padded[name] = value + left
        elif value.dim() == 2 and name != "labels":
            padded[name] = torch.nn.functional.pad(value, (left, right))
        elif value.dim() == 2 and not head.seq2seq:
            padded[name] = torch.nn.functional.pad(value, (left, right), value=IGNORED)
        elif value.dim() == 2:
            padded[name] = torch.nn.functional.pad(value, (0, right), value=IGNORED)
    padded["attention_mask"] = torch.nn.functional.pad(torch.ones(2, 45), (left, right))
    return plain, padded


@pytest.mark.parametrize(("left", "right"), [(0, 9), (9, 0), (4, 5)])
def test_padding_changes_no_loss(head_with_loss: Head, left: int, right: int) -> None:
    model = head_with_loss.build().eval()
    plain, padded = pad_labelled(head_with_loss, left, right)
    with torch.no_grad():
        expected, actual = model(**plain).loss, model(**padded).loss
    assert (actual - expected).abs() <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_any_type_of_mask_is_read_alike(dtype: torch.dtype) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build().eval()
    ids, mask = pad_rows(rows_of(), "rl")
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, attention_mask=mask.to(dtype)).logits, expected)


def test_a_mask_of_ones_is_no_mask(head: Head) -> None:
    model = head.build().eval()
    inputs = {"input_ids": random_ids(2, 70, seed=1), **decoder_inputs(head, 2)}
    with torch.no_grad():
        expected = head.scores(model(**inputs))
        actual = head.scores(model(**inputs, attention_mask=torch.ones(2, 70)))
    assert torch.equal(actual, expected)
