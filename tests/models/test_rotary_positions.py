"""Rotary positions in models: which layers have them, and what they depend on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reformer_hf import ReformerConfig, ReformerForMaskedLM, ReformerForQuestionAnswering
from tests.models.builders import NO_DROPOUT, TINY, random_ids

ROTARY = ("local", "full", "hybrid")


def model(kind: str, **fields: Any) -> ReformerForMaskedLM:
    """One layer without a table of positions: rotary positions are all it has."""
    torch.manual_seed(0)
    config = ReformerConfig(**TINY | NO_DROPOUT | {"attn_layers": [kind], **fields})
    made = ReformerForMaskedLM(config).eval()
    with torch.no_grad():
        for weight in made.reformer.embeddings.parameters():
            weight.zero_()
    return made


@torch.no_grad()
def logits(made: ReformerForMaskedLM, ids: Tensor, **inputs: Any) -> Tensor:
    return made(ids, **inputs).logits


@pytest.mark.parametrize("kind", ROTARY)
def test_only_distances_count(kind: str) -> None:
    made, ids = model(kind), random_ids(2, 12, seed=1)
    places = torch.arange(12).unsqueeze(0)
    found = logits(made, ids, position_ids=places)
    torch.testing.assert_close(
        logits(made, ids, position_ids=places + 3000), found, atol=1e-3, rtol=0
    )
    apart = logits(made, ids, position_ids=5 * places)
    assert (apart - found).abs().max() > 1e-2


@pytest.mark.parametrize("theta", [None, 10_000.0])
def test_full_attention_knows_the_order_of_tokens_by_rotary_positions(theta: float | None) -> None:
    made, ids = model("full", rope_theta=theta), random_ids(1, 12, seed=1)
    backwards = logits(made, ids.flip(1)).flip(1)
    difference = (logits(made, ids) - backwards).abs().max()
    assert difference < 1e-5 if theta is None else difference > 1e-2


def test_lsh_layers_have_none() -> None:
    ids = random_ids(2, 50, seed=1)
    with_theta, without = (model("lsh", rope_theta=theta) for theta in (10_000.0, None))
    assert torch.equal(logits(with_theta, ids), logits(without, ids))


def test_padding_on_the_left_shifts_nothing() -> None:
    made, ids = model("local"), random_ids(1, 20, seed=1)
    padded = torch.cat((torch.zeros_like(ids[:, :7]), ids), dim=1)
    real = (padded != 0).long()
    found = logits(made, padded, attention_mask=real)[:, 7:]
    torch.testing.assert_close(found, logits(made, ids), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_that_does_not_say_has_none(tmp_path: Path) -> None:
    made, ids = model("local", rope_theta=None), random_ids(1, 20, seed=1)
    made.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("rope_theta", 0) is None
    file.write_text(json.dumps(fields))
    old = ReformerForMaskedLM.from_pretrained(tmp_path)
    assert old.config.rope_theta is None
    assert torch.equal(logits(old, ids), logits(made, ids))


def test_a_checkpoint_keeps_its_base(tmp_path: Path) -> None:
    for theta in (10_000.0, 500.0):  # the default is written too
        model("local", rope_theta=theta).save_pretrained(tmp_path)
        assert ReformerForQuestionAnswering.from_pretrained(tmp_path).config.rope_theta == theta
        assert json.loads((tmp_path / "config.json").read_text())["rope_theta"] == theta
