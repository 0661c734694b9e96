"""Two and four processes that share every sequence compute what one process does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import Trainer

from reformer_hf.parallel import split_sequence
from tests.ecosystem.launch import launch_sharing
from tests.ecosystem.recipes import largest_difference
from tests.ecosystem.sequence_recipes import (
    CASES,
    DROPPED,
    REFUSED,
    TOGETHER,
    TRAINED,
    Case,
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


@pytest.mark.parametrize("name", DROPPED)
def test_dropped_hidden_states_are_the_same_wherever_tokens_are(name: str, ranks: Ranks) -> None:
    without = ranks[0][name]["loss"]
    for rank in ranks:
        found, first = rank["dropped"][name], ranks[0]["dropped"][name]
        assert torch.equal(found["loss"], first["loss"])
        assert abs(float(found["loss"] - without)) > 1e-3
        assert torch.equal(found["scores"], first["scores"])
        assert largest_difference(found["gradients"], first["gradients"]) == 0.0


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


def test_equal_parts_are_told_of(ranks: Ranks) -> None:
    for rank in ranks:
        assert rank["refused"]["told of parts"] == "[]"
        assert "holds the same tokens on all ranks" in rank["refused"]["told of whole rows"]


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_failure_in_the_middle_of_a_pass_ends_all_ranks(way: str) -> None:
    with pytest.raises(AssertionError, match="no room on this rank"):
        launch_sharing("failing_rank.py", 2, way, timeout=100)


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


@pytest.mark.parametrize(
    ("mesh", "options", "message"),
    [
        ("cpu", {}, "`mesh` must be a DeviceMesh or None, got a str"),
        (None, {"model": torch.nn.Linear(2, 2)}, "must be a model of reformer_hf, got a Linear"),
    ],
)
def test_what_cannot_be_split_is_refused(mesh: Any, options: dict[str, Any], message: str) -> None:
    model = options.get("model") or build(CASES["causal_lm"])[1]
    with pytest.raises(ValueError, match=message):
        split_sequence(model, mesh)


@pytest.fixture
def mesh_of_one(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A process group of this process alone, in a mesh of two dimensions."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "sp"))
    distributed.destroy_process_group()


def test_a_mesh_without_the_dimension_or_a_model_that_does_not_fit_is_refused(
    mesh_of_one: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = build(CASES["causal_lm"])
    with pytest.raises(ValueError, match=r"called 'cp', got 2 dimensions called \['dp', 'sp'\]"):
        split_sequence(model, mesh_of_one, dimension="cp")
    with pytest.raises(ValueError, match="`split_target` needs an encoder-decoder"):
        split_sequence(model, mesh_of_one, split_target=True)
    _, old = build(Case("causal_lm", {"attention_pattern": "chunk", "attn_layers": ["lsh"]}))
    with pytest.raises(ValueError, match="in the attention pattern 'window' alone"):
        split_sequence(old, mesh_of_one)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 3)
    with pytest.raises(ValueError, match=r"4 heads and 3 ranks; 4 heads go to \[1, 2, 4\] ranks"):
        split_sequence(model, mesh_of_one)
    assert model.sequence_group is None


def test_a_split_model_is_copied_but_not_pickled(mesh_of_one: DeviceMesh) -> None:
    _, model = build(CASES["causal_lm"])
    split_sequence(model, mesh_of_one)
    assert copy.deepcopy(model).sequence_group is model.sequence_group
    with pytest.raises(TypeError, match="make it whole first"):
        pickle.dumps(model)
    split_sequence(model, None)
    assert pickle.loads(pickle.dumps(model)).sequence_group is None
