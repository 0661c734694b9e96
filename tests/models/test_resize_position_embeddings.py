"""The longest sequence can be changed; positions that remain keep their embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.builders import HEAD_OF, Head, random_ids, train_step

TABLES = pytest.mark.parametrize(
    "table",
    [
        {},
        {"axial_pos_embds": False},
        {"axial_pos_shape": [3, 4, 5], "axial_pos_embds_dim": [8, 8, 16]},
    ],
    ids=["derived", "learned", "three-axes"],
)


@TABLES
@pytest.mark.parametrize("longest", [170, 61, 33], ids=["longer", "a-little-longer", "shorter"])
def test_positions_that_remain_keep_their_embeddings(
    head: Head, table: dict[str, Any], longest: int, tmp_path: Path
) -> None:
    model = head.build(max_position_embeddings=60, **table).eval()
    batch = head.batch(2, min(longest, 60))
    with torch.no_grad():
        expected = head.scores(model(**batch))
        model.resize_position_embeddings(longest)
        assert torch.equal(head.scores(model(**batch)), expected)
    assert model.config.max_position_embeddings == longest
    assert model.get_position_embeddings().num_positions >= longest

    # The new maximum is used in full, and not exceeded.
    inputs = {**head.inputs(2, 9), "input_ids": random_ids(2, longest, seed=1)}
    with torch.no_grad():
        expected = head.scores(model(**inputs))
    assert torch.isfinite(expected).all()
    too_long = {**inputs, "input_ids": random_ids(2, longest + 1, seed=1)}
    message = f"max_position_embeddings={longest} tokens, got {longest + 1}"
    with pytest.raises(ValueError, match=message):
        model(**too_long)

    model.save_pretrained(tmp_path)
    loaded = head.model_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(**inputs)), expected)


@TABLES
@pytest.mark.parametrize("name", ["seq2seq_model", "seq2seq_lm"])
def test_targets_can_be_made_longer(name: str, table: dict[str, Any], tmp_path: Path) -> None:
    head = HEAD_OF[name]
    table = {k: v for k, v in table.items() if k == "axial_pos_embds"}
    model = head.build(max_target_positions=30, **table).eval()
    source, target = random_ids(2, 20, seed=1), random_ids(2, 90, seed=2)
    with torch.no_grad():
        expected = head.scores(model(source, decoder_input_ids=target[:, :30]))
        model.resize_target_position_embeddings(90)
        actual = head.scores(model(source, decoder_input_ids=target[:, :30]))
        assert torch.equal(actual, expected)
        expected = head.scores(model(source, decoder_input_ids=target))
    assert torch.isfinite(expected).all()
    assert model.config.max_target_positions == 90
    assert model.config.max_position_embeddings == 4096
    with pytest.raises(ValueError, match="max_target_positions=90 tokens, got 91"):
        model(source, decoder_input_ids=random_ids(2, 91, seed=1))
    model.save_pretrained(tmp_path)
    loaded = head.model_class.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(head.scores(loaded(source, decoder_input_ids=target)), expected)


@TABLES
def test_new_positions_can_be_learned(table: dict[str, Any]) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build(max_position_embeddings=60, **table)
    model.resize_position_embeddings(100)
    _, gradients = train_step(head, model, head.batch(2, 100))
    assert all(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("size", [0, -5, 2.5, True, None, "10"], ids=repr)
def test_impossible_sizes_are_refused(head: Head, size: Any) -> None:
    model = head.build()
    with pytest.raises(ValueError, match="must be a positive integer, got"):
        model.resize_position_embeddings(size)
    assert model.config.max_position_embeddings == 4096
    if head.seq2seq:
        with pytest.raises(ValueError, match="must be a positive integer, got"):
            model.resize_target_position_embeddings(size)


def test_new_positions_have_the_configured_scale() -> None:
    model = HEAD_OF["model"].build(
        max_position_embeddings=60, hidden_size=256, axial_norm_std=0.25, axial_pos_embds=False
    )
    model.resize_position_embeddings(200)
    new = model.get_position_embeddings().weight[60:]
    assert new.std().item() == pytest.approx(0.25, rel=0.1)
