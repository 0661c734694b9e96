"""Two and four processes that share every sequence compute what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from tests.ecosystem.launch import launch_sharing
from tests.ecosystem.recipes import largest_difference
from tests.ecosystem.sequence_recipes import (
    CASES,
    REFUSED,
    TOGETHER,
    TRAINED,
    batch_of,
    build,
    collate,
    training_arguments,
    training_data,
)
from tests.models.builders import gradients, train_step

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """What the processes found; started once for all tests here."""
    folder: Path = tmp_path_factory.mktemp("sequence_parallel")
    launch_sharing("sequence_parallel.py", request.param, folder)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_loss_scores_and_gradients_are_those_of_one_process(name: str, ranks: Ranks) -> None:
    case = CASES[name]
    head, model = build(case)
    torch.manual_seed(7)
    output = model(**batch_of(case))
    output.loss.backward()
    expected = gradients(model)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 0.01
    for rank in ranks:
        found = rank[name]
        torch.testing.assert_close(found["loss"], output.loss.detach(), atol=1e-5, rtol=0)
        assert largest_difference(found["gradients"], expected) <= 1e-5
        if output.get("logits") is None and head.task != "span":
            assert found["scores"] is None
            continue
        scores = head.scores(output).detach()
        torch.testing.assert_close(found["scores"], scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("way", ["accumulated", "sharded"])
def test_other_ways_of_sharing_work_beside_it(way: str, name: str, ranks: Ranks) -> None:
    case = CASES[name]
    head, model = build(case)
    batch = batch_of(case, rows=4) if way == "accumulated" else batch_of(case)
    _, expected = train_step(head, model, batch)
    for rank in ranks:
        assert largest_difference(rank[f"{way}-{name}"]["gradients"], expected) <= 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_every_rank_refuses_what_does_not_fit_together(name: str, ranks: Ranks) -> None:
    for rank in ranks:
        assert REFUSED[name] in rank["refused"][name]


def test_ranks_that_waited_name_the_one_that_failed(ranks: Ranks) -> None:
    for name in ("one bad token", "one bad label"):
        assert "rank 0" not in ranks[0]["refused"][name]
        for rank in ranks[1:]:
            assert f"rank 0 of {len(ranks)}" in rank["refused"][name]


def test_a_model_can_be_made_whole_again(ranks: Ranks) -> None:
    case = CASES["causal_lm"]
    _, model = build(case)
    with torch.no_grad():
        expected = float(model(**batch_of(case)).loss)
    for rank in ranks:
        assert float(rank["refused"]["whole again"]) == pytest.approx(expected, abs=1e-6)


def test_a_trainer_trains_as_one_process_does(ranks: Ranks, tmp_path: Path) -> None:
    _, model = build(CASES[TRAINED])
    groups = len(ranks) // 2
    trainer = Trainer(
        *(model, training_arguments(tmp_path, accumulated=2 * groups)),
        train_dataset=training_data(),
        eval_dataset=training_data(),
        data_collator=collate,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluated = trainer.evaluate()["eval_loss"]
    for rank in ranks:
        found = rank["trainer"]
        assert found["losses"] == pytest.approx(losses, abs=2e-4)  # logged with four digits
        if groups == 1:  # else `Trainer` divides by the labels of all groups, as under DDP
            assert found["evaluated"] == pytest.approx(evaluated, rel=1e-5)
        assert largest_difference(found["weights"], dict(model.named_parameters())) <= 1e-5
