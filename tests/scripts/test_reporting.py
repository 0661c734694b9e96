"""A run's card says what was measured, in metadata that the Hub can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer, TrainingArguments

import reformer_hf
from tests.models.builders import HEAD_OF
from training.reporting import CardFacts, MetricRow, model_card

ROWS = (
    MetricRow("rouge1", "ROUGE-1", 41.23456, baseline=30.5),
    MetricRow("rougeL", "ROUGE-L", 25.0),
)


def facts(**changed: Any) -> CardFacts:
    fields: dict[str, Any] = {
        "task": "summarization",
        "auto_class": "AutoModelForSeq2SeqLM",
        "data": "meetings of a committee",
        "dataset_name": "someone/meetings",
        "sizes": {"train": 1200, "test": 30},
        "lengths": "It reads up to 4,096 tokens.",
        "evaluated_split": "test",
        "baseline": "the first 100 words.",
        "rows": ROWS,
        "language": "en",
        "limits": ["It has read nothing else."],
    }
    return CardFacts(**{**fields, **changed})


def card_of(folder: Path, name: str = "seq2seq_lm", **changed: Any) -> ModelCard:
    arguments = TrainingArguments(
        str(folder / "run"), hub_model_id="someone/minutes", report_to="none", use_cpu=True
    )
    trainer = Trainer(HEAD_OF[name].build(), arguments)
    written = folder / "README.md"
    model_card(trainer, facts(**changed), has_curve=False).save(written)
    return ModelCard.load(written)


def test_results_are_in_the_model_index_as_they_were_measured(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert card.data.model_name == "minutes"
    found = [
        (r.task_type, r.dataset_type, r.dataset_split, r.metric_type, r.metric_name, r.metric_value)
        for r in card.data.eval_results
    ]
    where = ("summarization", "someone/meetings", "test")
    assert found == [(*where, "rouge1", "ROUGE-1", 41.2346), (*where, "rougeL", "ROUGE-L", 25.0)]
    assert "| ROUGE-1 | 41.235 | 30.500 |" in card.text
    assert "| ROUGE-L | 25.000 |  |" in card.text


def test_the_metadata_survives_what_the_hub_does_with_it(tmp_path: Path) -> None:
    _, head, _ = card_of(tmp_path).content.split("---\n", 2)
    fields = yaml.safe_load(head)
    assert isinstance(fields, dict)
    (entry,) = fields["model-index"]
    for result in entry["results"]:
        assert {"type"} <= result["task"].keys()
        assert {"name", "type"} <= result["dataset"].keys()
        assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    again = ModelCardData(**fields).to_dict()
    assert again == fields


@pytest.mark.parametrize("name", ["seq2seq_lm", "causal_lm"])
def test_every_card_can_be_found_under_the_package(name: str, tmp_path: Path) -> None:
    data = card_of(tmp_path, name).data
    assert data.tags[0] == "reformer_hf"
    assert len(set(data.tags)) == len(data.tags)
    assert HEAD_OF[name].config_class.model_type in data.tags
    assert data.library_name == "transformers"


def test_a_run_without_evaluation_claims_nothing(tmp_path: Path) -> None:
    card = card_of(tmp_path, rows=())
    assert card.data.eval_results is None
    assert "model-index" not in card.content
    assert "The model was not evaluated in this run." in card.text


def test_a_local_base_model_stays_local(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    card = card_of(tmp_path, base_model=str(base), dataset_name=None)
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert "fine-tuned from `base`" in card.text
    assert str(tmp_path) not in card.content
    assert card_of(tmp_path, base_model="someone/base").data.base_model == "someone/base"


def test_versions_and_the_way_to_load_are_named(tmp_path: Path) -> None:
    text = card_of(tmp_path).text
    assert f"reformer_hf {reformer_hf.__version__}, torch {torch.__version__}" in text
    assert 'AutoModelForSeq2SeqLM.from_pretrained("someone/minutes")' in text
    assert "- It has read nothing else." in text
