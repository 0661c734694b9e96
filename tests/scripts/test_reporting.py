"""A run's card says what was measured, in metadata that the Hub can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer, TrainingArguments

import reformer_hf
from tests.models.builders import HEAD_OF
from tests.pretrained.conftest import tiny_llama
from training.models import count_in_words
from training.reporting import (
    CardFacts,
    CardTrainer,
    MetricRow,
    model_card,
    show_results,
    verdict,
)

ROWS = (
    MetricRow("rouge1", "ROUGE-1", 41.23456, {"lead": 30.5, "constant": 41.23456}),
    MetricRow("rougeL", "ROUGE-L", 25.0, {"lead": 20.0}),
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
        "baselines": "Lead: the first 100 words.",
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
    assert "| metric | this model | lead | constant |" in card.text
    assert "| ROUGE-1 | 41.235 | 30.500 | 41.235 |" in card.text
    assert "| ROUGE-L | 25.000 | 20.000 |  |" in card.text


def test_the_card_holds_the_command_where_there_is_one(tmp_path: Path) -> None:
    assert "```bash" not in card_of(tmp_path).text
    text = card_of(tmp_path, command="python scripts/run_ner.py --do_train").text
    assert "\n```bash\npython scripts/run_ner.py --do_train\n```\n" in text


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


def test_a_model_beats_a_baseline_in_every_metric_or_the_metrics_are_named() -> None:
    assert verdict(ROWS) == "The model does not beat: constant (ROUGE-1)."
    assert verdict(ROWS[1:]) == "The model beats what it is compared with: lead."
    bits = MetricRow("bits_per_byte", "bits per byte", 2.5, {"xz": 2.0}, lower_is_better=True)
    assert verdict([bits]) == "The model does not beat: xz (bits per byte)."
    assert "no baseline" in verdict([MetricRow("loss", "loss", 1.0)])


def test_a_card_says_first_whether_the_model_is_worth_anything(tmp_path: Path) -> None:
    first = card_of(tmp_path).text.split("\n\n")[1]
    assert "does not beat: constant (ROUGE-1)" in first


def test_a_card_of_a_model_that_ignores_its_input_claims_nothing(tmp_path: Path) -> None:
    finding = "1 distinct output of 37: the model ignores the document."
    text = card_of(tmp_path, finding=finding, claims=False, rows=ROWS[1:]).text
    assert finding in text.split("\n\n")[1]
    assert "beats" not in text


def test_every_baseline_has_a_line_on_screen(capsys: pytest.CaptureFixture[str]) -> None:
    show_results("ROUGE", ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line] == [
        ["ROUGE", "ROUGE-1", "ROUGE-L"],
        ["model", "41.23", "25.00"],
        ["lead", "30.50", "20.00"],
        ["constant", "41.23"],
    ]


def test_few_parameters_are_counted_one_by_one() -> None:
    assert count_in_words(48_213) == "48,213"
    assert count_in_words(12_345_678) == "12.3 million"


# ---- what a run did ----


class Numbers(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(8) + row) % 300
        return {"input_ids": ids, "labels": ids}


def run(folder: Path, checkpoint: str | None = None, **arguments: Any) -> CardTrainer:
    """A run of a language model; its arguments are those of transformers."""
    given = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "save_steps": 2,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **arguments,
    }
    trainer = CardTrainer(
        HEAD_OF["causal_lm"].build(),
        TrainingArguments(str(folder / "run"), **given),
        train_dataset=Numbers(),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_the_card_names_the_learning_rate_that_was_used(tmp_path: Path) -> None:
    run(tmp_path, learning_rate=1e-3, logging_steps=1)
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    # A checkpoint brings its optimizer along, and the rate of that optimizer.
    resumed = run(tmp_path, checkpoint, learning_rate=0.5, logging_steps=1)
    text = model_card(resumed, facts(), has_curve=False).text
    assert "| learning rate | 0.001 (linear), logged from 0.001 to" in text
    assert "0.5 " not in text.split("learning rate")[1].split("\n")[0]


def test_the_card_describes_the_model_as_it_is(tmp_path: Path) -> None:
    trainer = Trainer(
        HEAD_OF["seq2seq_lm"].build(), TrainingArguments(str(tmp_path), report_to="none")
    )
    config = trainer.model.config
    (row,) = [
        line
        for line in model_card(trainer, facts(), has_curve=False).text.splitlines()
        if line.startswith("| model |")
    ]
    for part in (
        f"layers {len(config.attn_layers)} ({', '.join(config.attn_layers)})",
        f"decoder layers {len(config.decoder_attn_layers)} (",
        f"width {config.hidden_size}",
        f"vocabulary {config.vocab_size}",
    ):
        assert part in row


def test_a_run_shorter_than_its_logging_steps_shows_its_loss(tmp_path: Path) -> None:
    short = run(tmp_path / "short", logging_steps=500)
    assert [e["step"] for e in short.state.log_history if "loss" in e] == [1, 2, 3, 4]
    asked = run(tmp_path / "asked", logging_steps=3)
    assert [e["step"] for e in asked.state.log_history if "loss" in e] == [3]
    silent = run(tmp_path / "silent", logging_strategy="no")
    assert not any("loss" in entry for entry in silent.state.log_history)


def test_resuming_does_not_miss_tied_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        transformers.trainer.logger, "warning", lambda text, *rest: warnings.append(text)
    )
    run(tmp_path)
    resumed = run(tmp_path, str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.model.config.tie_word_embeddings
    assert [text for text in warnings if "missing keys" in text] == []


def test_resuming_still_misses_weights_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    trainer = run(tmp_path)
    monkeypatch.setattr(
        transformers.trainer.logger, "warning", lambda text, *rest: warnings.append(text)
    )
    weights = trainer.model.state_dict()
    lost = next(name for name in weights if "norm" in name)
    del weights[lost]
    trainer._issue_warnings_after_load(trainer.model.load_state_dict(weights, strict=False))
    assert any(lost in text for text in warnings)


def test_the_snippet_of_an_unpublished_model_opens_it_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = CardTrainer(
        HEAD_OF["causal_lm"].build(),
        TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True),
        processing_class=reformer_hf.byte_tokenizer(),
    )
    trainer.save_model()
    changed = {"auto_class": "AutoModelForCausalLM", "usage": "print(type(model).__name__)"}
    card = model_card(trainer, facts(**changed), has_curve=False)
    code = card.text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "run")
    session: dict[str, Any] = {}
    exec(code, session)
    assert type(session["model"]).__name__ == "ReformerForCausalLM"
    assert "not on PyPI" in card.text


def test_the_snippet_of_a_model_in_lsh_attention_opens_it_in_lsh_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama(vocab_size=300, attn_implementation="reformer")
    arguments = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True)
    trainer = CardTrainer(model, arguments, processing_class=reformer_hf.byte_tokenizer())
    trainer.save_model()
    card = model_card(trainer, facts(auto_class="AutoModelForCausalLM", usage=""), has_curve=False)
    code = card.text.split("```python\n")[1].split("```")[0]
    assert code.startswith("import reformer_hf")
    monkeypatch.chdir(tmp_path / "run")
    session: dict[str, Any] = {}
    exec(code, session)
    assert session["model"].config._attn_implementation == "reformer"
    assert "not on PyPI" in card.text
