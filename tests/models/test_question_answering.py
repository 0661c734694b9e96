"""Spans: loss of start and end, and no probability for padding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests.models.builders import HEAD_OF, pad_rows, random_ids

HEAD = HEAD_OF["question_answering"]


def test_loss_is_the_mean_of_the_cross_entropies_of_start_and_end() -> None:
    model = HEAD.build().eval()
    batch = HEAD.batch(2, 30)
    output = model(**batch)
    start = F.cross_entropy(output.start_logits, batch["start_positions"])
    end = F.cross_entropy(output.end_logits, batch["end_positions"])
    assert output.loss.item() == pytest.approx(((start + end) / 2).item(), rel=1e-6)


@pytest.mark.parametrize("outside", [-1, 30, 500])
def test_positions_outside_the_sequence_have_no_loss(outside: int) -> None:
    model = HEAD.build().eval()
    batch = HEAD.batch(2, 30)
    batch["start_positions"][1] = batch["end_positions"][1] = outside
    output = model(**batch)
    start = F.cross_entropy(output.start_logits[:1], batch["start_positions"][:1])
    end = F.cross_entropy(output.end_logits[:1], batch["end_positions"][:1])
    assert output.loss.item() == pytest.approx(((start + end) / 2).item(), rel=1e-6)


def test_positions_may_stand_in_a_column() -> None:
    model = HEAD.build().eval()
    batch = HEAD.batch(2, 30)
    expected = model(**batch).loss
    for name in ("start_positions", "end_positions"):
        batch[name] = batch[name].unsqueeze(-1)
    assert torch.equal(model(**batch).loss, expected)


def test_padding_has_no_probability() -> None:
    model = HEAD.build().eval()
    ids, mask = pad_rows([random_ids(30, seed=1), random_ids(11, seed=2)], "l")
    output = model(ids, attention_mask=mask)
    for logits in (output.start_logits, output.end_logits):
        assert not logits.softmax(-1)[mask == 0].any()


def test_positions_on_padding_have_no_loss() -> None:
    model = HEAD.build().eval()
    ids, mask = pad_rows([random_ids(30, seed=1), random_ids(11, seed=2)], "r")
    start, end = torch.tensor([3, 20]), torch.tensor([9, 29])
    output = model(ids, attention_mask=mask, start_positions=start, end_positions=end)
    first = [
        F.cross_entropy(logits[:1], positions[:1])
        for logits, positions in ((output.start_logits, start), (output.end_logits, end))
    ]
    assert output.loss.item() == pytest.approx((sum(first) / 2).item(), rel=1e-6)
