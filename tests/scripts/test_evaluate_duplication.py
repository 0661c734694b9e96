"""The duplication task: what is asked is the word itself, and a small run learns and is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import evaluate_duplication
from evaluate_duplication import build, draw
from training.synthetic import IGNORED


def test_the_second_word_is_asked_for_and_is_the_first() -> None:
    tokens, positions, labels = draw(3, 5, torch.Generator().manual_seed(0))
    assert tokens.shape == positions.shape == labels.shape == (3, 12)
    assert (tokens[:, [0, 6]] == 0).all()
    assert int(tokens[:, 1:6].min()) > 0
    assert torch.equal(tokens[:, :6], tokens[:, 6:])
    # At every place the label is the token that comes next.
    assert torch.equal(labels[:, 6:-1], tokens[:, 7:])
    assert (labels[:, :6] == IGNORED).all()
    assert (labels[:, -1] == IGNORED).all()


def test_what_is_trained_with_some_rounds_can_be_evaluated_with_any() -> None:
    trained = build(7, 2, seed=0)
    for rounds in (0, 1, 8):
        build(7, rounds, seed=1).load_state_dict(trained.state_dict(), strict=True)


def test_without_rounds_all_earlier_tokens_are_seen() -> None:
    model = build(15, 0, seed=0).eval()
    tokens, positions, _ = draw(1, 15, torch.Generator().manual_seed(0))
    first = model.get_input_embeddings()(tokens).detach().requires_grad_()
    last = model(inputs_embeds=first, position_ids=positions).logits[0, -1].square().sum()
    (grad,) = torch.autograd.grad(last, first)
    assert (grad[0].abs().sum(dim=-1) > 0).all()


def test_a_small_run_learns_and_writes_numbers_and_a_table(tmp_path: Path) -> None:
    options = ["--word", "7", "--steps", "150", "--learning-rate", "3e-3", "--enough", "0.95"]
    assert evaluate_duplication.main([*options, "--output", str(tmp_path / "found")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["trained"] for row in rows] == ["full", "LSH-4", "LSH-2", "LSH-1"]
    assert all([*row["right"]] == ["full", "LSH-8", "LSH-4", "LSH-2", "LSH-1"] for row in rows)
    assert rows[0]["right"]["full"] > 0.9
    assert "| full | " in (tmp_path / "found.md").read_text()


def test_a_word_without_symbols_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--word", "0", "--output", str(tmp_path / "found")]
    assert evaluate_duplication.main(options) == 2
    assert "word: expected at least 1 symbol, got 0" in capsys.readouterr().err
