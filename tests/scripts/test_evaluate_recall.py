"""Associative recall: what is asked can be known, and a small run writes its results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

import evaluate_recall
from evaluate_recall import RecallTask


@pytest.mark.parametrize("length", [512, 700])
def test_every_value_that_is_asked_for_stands_before_its_key(length: int) -> None:
    task = RecallTask()
    tokens, labels = task.draw(3, length, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (3, length)
    assert 0 < int(tokens.min()) < int(tokens.max()) < task.vocab_size
    for row, asked in zip(tokens, labels, strict=True):
        places = (asked != -100).nonzero().flatten().tolist()
        assert len(places) == task.pairs * task.times
        for place in places:
            first = row.tolist().index(int(row[place]))
            assert first < length // 2 <= place
            assert int(row[first - 1]) == int(asked[place])
    # What stands before a key that comes again does not give its value away.
    assert not (tokens[:, :-1] == labels[:, 1:]).any()


def test_full_attention_sees_the_beginning_of_a_sequence_and_local_attention_does_not() -> None:
    task, length = RecallTask(), 256
    tokens, _ = task.draw(1, length, torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 3] = tokens[0, 3] % task.keys + 1
    moved = {}
    for name in ("full", "local"):
        model = evaluate_recall.build(task, name, length, length, seed=0).eval()
        with torch.no_grad():
            last = [model(x.to(model.device)).logits[0, -1] for x in (tokens, other)]
        moved[name] = not torch.equal(*last)
    assert moved == {"full": True, "local": False}


def test_a_small_run_writes_numbers_a_table_and_a_figure(tmp_path: Path) -> None:
    options = ["--contenders", "full", "lsh 2", "--steps", "2", "--rows", "2", "--tests", "1"]
    output = ["--lengths", "512", "600", "--output", str(tmp_path / "recall")]
    assert evaluate_recall.main([*options, *output]) == 0
    document = json.loads((tmp_path / "recall.json").read_text())
    assert [row["contender"] for row in document["rows"]] == ["full", "lsh 2"]
    assert all(row["right"].keys() == {"512", "600"} for row in document["rows"])
    assert "| lsh 2 | 2 |" in (tmp_path / "recall.md").read_text()
    assert (tmp_path / "recall.png").is_file()


def test_unknown_contenders_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--contenders", "mamba", "--output", str(tmp_path / "recall")]
    assert evaluate_recall.main(options) == 2
    assert "contenders: expected some of" in capsys.readouterr().err


def test_lessons_double_until_they_are_the_task() -> None:
    arguments = argparse.Namespace(rows=2, length=512)
    found = evaluate_recall.lessons(RecallTask(), arguments, room=2000)
    assert [lesson.name for lesson in found] == [f"{n} tokens" for n in (32, 64, 128, 256, 512)]
    generator = torch.Generator().manual_seed(0)
    for lesson, length, rows in zip(found, (32, 64, 128, 256, 512), (32, 16, 8, 4, 2), strict=True):
        tokens, positions, labels = lesson.draw(generator)
        assert tokens.shape == positions.shape == labels.shape == (rows, length)
        assert int(positions.max()) < 2000
        assert (labels != -100).sum() == rows * length // 4
