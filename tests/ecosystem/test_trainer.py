"""transformers' `Trainer` and `Seq2SeqTrainer`, unchanged, with their own options."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from reformer_hf import byte_tokenizer
from tests.models.builders import ALL_DROPOUTS, HEAD_OF, NO_DROPOUT, VOCAB, Head, random_ids

Rows = list[dict[str, Tensor]]
ROWS, LENGTH = 8, 30
# Newer versions of transformers say activation checkpointing.
_NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in _NAMES
)


def rows_of(head: Head, count: int = ROWS) -> Rows:
    """A data set; labels in it are easy to learn: classes depend on the first token."""
    batch = head.batch(count, LENGTH)
    if head.task == "class":
        batch["labels"] = batch["input_ids"][:, 0] % 3
    return [{name: value[row] for name, value in batch.items()} for row in range(count)]


def trainer_of(
    head: Head, model: nn.Module, folder: Path, train: Rows, **options: Any
) -> Trainer | Seq2SeqTrainer:
    """The trainer that fits the head."""
    collator = options.pop("data_collator", None)
    metrics = options.pop("compute_metrics", None)
    trainer_class, arguments_class = (
        (Seq2SeqTrainer, Seq2SeqTrainingArguments) if head.seq2seq else (Trainer, TrainingArguments)
    )
    settings = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return trainer_class(
        model=model,
        args=arguments_class(output_dir=str(folder), **settings),
        train_dataset=train,
        eval_dataset=train,
        data_collator=collator,
        compute_metrics=metrics,
    )


def losses(trainer: Trainer) -> list[float]:
    """What was logged at every step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of labels other than -100 that have the highest score (of a span: of its starts)."""
    scores, labels = prediction.predictions, prediction.label_ids
    if isinstance(labels, tuple):
        scores, labels = scores[0], labels[0]
    hits = (scores.argmax(-1) == labels)[labels != -100]
    return {"accuracy": float(hits.mean())}


def test_every_head_trains_evaluates_and_comes_back(head_with_loss: Head, tmp_path: Path) -> None:
    head = head_with_loss
    model = head.build(**ALL_DROPOUTS)
    rows = rows_of(head)
    trainer = trainer_of(
        head, model, tmp_path, rows, max_steps=12, compute_metrics=accuracy, save_strategy="steps",
        save_steps=6,
    )  # fmt: skip
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert 0.0 <= after["eval_accuracy"] <= 1.0
    assert after["eval_accuracy"] >= before["eval_accuracy"]
    trainer.save_model(tmp_path / "final")
    loaded = getattr(transformers, head.auto_class).from_pretrained(tmp_path / "final")
    again = trainer_of(head, loaded, tmp_path, rows, compute_metrics=accuracy).evaluate()
    assert again["eval_loss"] == after["eval_loss"]
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file()


def test_predictions_have_one_row_for_each_input(head_with_loss: Head, tmp_path: Path) -> None:
    head = head_with_loss
    rows = rows_of(head, count=6)  # the last batch is smaller
    found = trainer_of(head, head.build(), tmp_path, rows).predict(rows)
    scores = found.predictions[0] if head.task == "span" else found.predictions
    assert len(scores) == 6
    with torch.no_grad():
        model = head.build().eval()
        alone = head.scores(model(**{name: value[None] for name, value in rows[5].items()}))
    expected = alone[..., 0] if head.task == "span" else alone
    assert torch.allclose(torch.from_numpy(scores[5]), expected[0], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({CHECKPOINTING: True}, id="gradient_checkpointing"),
        pytest.param({"gradient_accumulation_steps": 2}, id="gradient_accumulation"),
        pytest.param({"bf16": True}, id="bf16"),
        pytest.param({"optim": "adafactor"}, id="adafactor"),
        pytest.param({"neftune_noise_alpha": 5.0}, id="neftune"),
        pytest.param({"label_smoothing_factor": 0.1}, id="label_smoothing"),
        pytest.param({"train_sampling_strategy": "group_by_length"}, id="group_by_length"),
        pytest.param({"max_grad_norm": 0.1, "weight_decay": 0.1}, id="clipping"),
    ],
)
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_options_of_the_trainer_train(
    name: str, reversible: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    head = HEAD_OF[name]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    collator = None
    if head.seq2seq:
        collator = DataCollatorForSeq2Seq(byte_tokenizer(), model=model, padding="longest")
    rows = [{k: v.tolist() for k, v in row.items()} for row in rows_of(head)]
    if not head.seq2seq:
        collator = transformers.default_data_collator
    trainer = trainer_of(
        head, model, tmp_path, rows, max_steps=10, data_collator=collator, **options
    )
    trainer.train()
    found = losses(trainer)
    assert len(found) == 10
    assert all(math.isfinite(loss) for loss in found)
    assert sum(found[-3:]) < sum(found[:3])


def test_accumulated_steps_log_the_loss_of_the_joined_batch(tmp_path: Path) -> None:
    head = HEAD_OF["causal_lm"]
    found = []
    for batch_size, accumulated in ((8, 1), (2, 4)):
        model = head.build(hash_seed=3, **NO_DROPOUT)
        trainer = trainer_of(
            head, model, tmp_path, rows_of(head),
            per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated,
        )  # fmt: skip
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_smoothed_labels_of_a_causal_model_are_shifted(tmp_path: Path) -> None:
    """`Trainer` asks for the name of the class, and so must know it."""
    head = HEAD_OF["causal_lm"]
    model = head.build(**NO_DROPOUT).eval()
    batch = head.batch(2, LENGTH)
    trainer = trainer_of(head, model, tmp_path, [], label_smoothing_factor=0.1)
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
        scores = model(batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    hit = scores.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    smoothed = -(0.9 * hit + 0.1 * scores.mean(-1))[labels != -100].mean()
    assert loss.item() == pytest.approx(smoothed.item(), rel=1e-5)


def test_batch_size_is_halved_until_the_memory_suffices(tmp_path: Path) -> None:
    head = HEAD_OF["causal_lm"]
    model = head.build()
    sizes: list[int] = []

    def little_memory(_: nn.Module, __: Any, inputs: dict[str, Tensor]) -> None:
        size = inputs["input_ids"].shape[0]
        sizes.append(size)
        if size > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model.register_forward_pre_hook(little_memory, with_kwargs=True)
    trainer = trainer_of(
        head, model, tmp_path, rows_of(head), auto_find_batch_size=True,
        per_device_train_batch_size=8,
    )  # fmt: skip
    trainer.train()
    assert sizes[0] == 8
    assert sizes[-3:] == [2, 2, 2]
    assert len(losses(trainer)) == 3


def test_generation_metrics_of_a_sequence_to_sequence_model(tmp_path: Path) -> None:
    head = HEAD_OF["seq2seq_lm"]
    model: PreTrainedModel = head.build()
    lengths: list[tuple[int, ...]] = []

    def shape(prediction: EvalPrediction) -> dict[str, float]:
        lengths.append(prediction.predictions.shape)
        return {"tokens": float(prediction.predictions.size)}

    trainer = trainer_of(
        head, model, tmp_path, rows_of(head), compute_metrics=shape,
        predict_with_generate=True, generation_max_length=25, generation_num_beams=2,
    )  # fmt: skip
    found = trainer.evaluate()
    assert lengths == [(ROWS, 25)]
    assert math.isfinite(found["eval_loss"])


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "masked"])
def test_collators_of_language_modelling_feed_our_models(masked: bool, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(append_eos=False)
    head = HEAD_OF["masked_lm" if masked else "causal_lm"]
    model = head.build(vocab_size=len(tokenizer))
    texts = ["a short text", "a text that is somewhat longer", "one", "another of them"]
    rows = [{"input_ids": tokenizer(text).input_ids} for text in texts]
    collator: Callable[..., Any] = transformers.DataCollatorForLanguageModeling(
        tokenizer, mlm=masked, mlm_probability=0.3
    )
    trainer = trainer_of(head, model, tmp_path, rows, data_collator=collator, max_steps=2)
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))


def test_ids_outside_the_vocabulary_stop_the_trainer_with_the_number(tmp_path: Path) -> None:
    head = HEAD_OF["causal_lm"]
    ids = random_ids(10, seed=1)
    ids[3] = VOCAB + 5
    trainer = trainer_of(head, head.build(), tmp_path, [{"input_ids": ids, "labels": ids}] * 4)
    with pytest.raises(ValueError, match=rf"input_ids.*got {VOCAB + 5}"):
        trainer.train()
