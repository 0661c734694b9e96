"""What is particular to classification: texts with one class each, and the classifier."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ClassificationArguments, ModelArguments
from training.data import check_column, check_text, first_rows, load_splits, required_split
from training.models import fit_positions, load_config, load_model, token_fields
from training.presets import preset_named, reformer_config
from training.samples import Sample


def load_examples(
    data: ClassificationArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "text" and "label" (the class as a string) of the splits that this run needs.

    Raises:
        ValueError: no data are named, or a split or column is missing, empty or unsuitable.
    """
    raw = load_splits(data, model)
    if raw is None:
        raise ValueError("dataset_name, train_file: expected data to classify, got none")
    wanted = [
        ("train", data.train_split_name, "do_train", training.do_train, data.max_train_samples),
        (
            "validation",
            data.validation_split_name,
            "do_eval",
            training.do_eval,
            data.max_eval_samples,
        ),
        ("test", data.test_split_name, "do_predict", training.do_predict, data.max_predict_samples),
    ]
    examples = {}
    for split, name, argument, needed, limit in wanted:
        if needed:
            found = required_split(raw, name or split, argument)
            if split == "train" and data.shuffle_train_dataset:
                found = found.shuffle(seed=data.shuffle_seed)
            examples[split] = _texts_and_labels(first_rows(found, limit), data)
    return examples


def _texts_and_labels(dataset: Dataset, data: ClassificationArguments) -> Dataset:
    text_columns = (data.text_column_names or "text").split(",")
    label_column = data.label_column_name or "label"
    for column in text_columns:
        check_column(dataset, column, "text_column_names")
        check_text(dataset, column, "text_column_names")
    check_column(dataset, label_column, "label_column_name")
    feature = dataset.features[label_column]
    kind = getattr(feature, "dtype", type(feature).__name__)
    if not (kind in ("string", "bool") or kind.startswith(("int", "uint"))):
        raise ValueError(
            f"label_column_name: expected class names or whole numbers in {label_column!r},"
            f" got {kind}"
        )

    def join(rows: dict[str, list[Any]]) -> dict[str, list[str]]:
        columns = [rows[column] for column in text_columns]
        labels = rows[label_column]
        if any(label is None for label in labels):
            raise ValueError(
                f"label_column_name: expected a class in every row of {label_column!r}"
            )
        if isinstance(feature, ClassLabel):
            labels = [feature.int2str(label) for label in labels]
        return {
            "text": [
                data.text_column_delimiter.join(part or "" for part in parts)
                for parts in zip(*columns, strict=True)
            ],
            "label": [str(label) for label in labels],
        }

    return dataset.map(
        join,
        batched=True,
        remove_columns=dataset.column_names,
        # Stated, or a column that is called "label" already would keep its old type.
        features=Features({"text": Value("string"), "label": Value("string")}),
        desc="Reading texts and labels",
    )


def class_names(dataset: Dataset) -> list[str]:
    """The classes in `dataset`, numbers by value and names by alphabet.

    Raises:
        ValueError: there are fewer than two.
    """
    names = sorted(set(dataset["label"]))
    if len(names) < 2:
        raise ValueError(f"label_column_name: expected at least two classes, got {names}")
    if all(name.lstrip("-").isdecimal() for name in names):
        names.sort(key=int)
    return names


def text_encoder(
    tokenizer: PreTrainedTokenizerBase, data: ClassificationArguments, label2id: dict[str, int]
) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
    """Encodes "text" as the input and "label" as the class number.

    The encoding raises ValueError for a class that `label2id` does not have.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        unknown = set(rows["label"]) - set(label2id)
        if unknown:
            raise ValueError(
                f"label_column_name: expected one of the model's classes {sorted(label2id)}, got"
                f" {sorted(unknown)}"
            )
        encoded = tokenizer(
            rows["text"],
            max_length=data.max_seq_length,
            padding="max_length" if data.pad_to_max_length else False,
            truncation=True,
        )
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": [label2id[label] for label in rows["label"]],
        }

    return encode


def given_config(
    arguments: ModelArguments, checkpoint: str | None, names: Sequence[str] | None
) -> PretrainedConfig | None:
    """The configuration of the named model or of the checkpoint; None if there is neither.

    Args:
        arguments: name the model.
        checkpoint: training resumes here.
        names: the classes to train, or None to keep those of the model.

    Raises:
        ValueError: there is no such model, or it cannot classify.
    """
    return load_config(
        arguments,
        checkpoint,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "sequence classification",
        **_class_fields(names),
    )


def _class_fields(names: Sequence[str] | None) -> dict[str, Any]:
    if names is None:
        return {}
    numbered = dict(enumerate(names))
    return {"id2label": numbered, "label2id": {name: id_ for id_, name in numbered.items()}}


def build_classifier(
    arguments: ModelArguments,
    data: ClassificationArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None,
    names: Sequence[str] | None,
) -> PreTrainedModel:
    """The given classifier, or a new Reformer of a preset size for the classes `names`.

    Raises:
        ValueError: the model takes no texts so long.
    """
    if config is None:
        config = reformer_config(
            preset_named(arguments.preset),
            max_length=data.max_seq_length,
            token_fields=token_fields(tokenizer) | _class_fields(names),
            overrides=arguments.config_overrides,
        )
    model = load_model(arguments, config, AutoModelForSequenceClassification, len(tokenizer))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    fit_positions(
        model, data.max_seq_length, "max_seq_length", arguments.resize_position_embeddings
    )
    return model


@torch.no_grad()
def classified_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    data: ClassificationArguments,
) -> list[Sample]:
    """What the classifier says about the first three examples, and how sure it is."""
    model.eval()
    found = []
    for number, row in enumerate(first_rows(examples, 3)):
        inputs = tokenizer(
            row["text"], max_length=data.max_seq_length, truncation=True, return_tensors="pt"
        ).to(model.device)
        probabilities = model(**inputs).logits[0].float().softmax(-1)
        best = int(probabilities.argmax())
        answer = f"{model.config.id2label[best]} (probability {float(probabilities[best]):.2f})"
        parts = [("text", row["text"]), ("class", row["label"]), ("output", answer)]
        found.append(Sample(title=f"example {number}", parts=parts))
    return found
