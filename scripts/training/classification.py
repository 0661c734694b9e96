"""What is particular to classification: texts with one class each, and the classifier."""

from functools import partial
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, Value
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ClassificationArguments, ModelArguments, require_one_of
from training.data import (
    TEXT_KINDS,
    beginnings,
    check_text_column,
    column_kind,
    first_rows,
    load_splits,
    needed_splits,
    required_split,
    tokenize,
)
from training.models import Task, load_tokenizer, new_config, require_offsets
from training.reporting import Sample

CLASSIFICATION = Task(
    "sequence classification",
    AutoModelForSequenceClassification,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "max_seq_length",
    "SEQ_CLS",
)


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
    examples = {}
    for split, argument, limit in needed_splits(data, training):
        name = getattr(data, f"{split}_split_name") or split
        found = required_split(raw, name, argument)
        if split == "train" and data.shuffle_train_dataset:
            found = found.shuffle(seed=data.shuffle_seed)
        examples[split] = _texts_and_labels(first_rows(found, limit), data)
    return examples


def _texts_and_labels(dataset: Dataset, data: ClassificationArguments) -> Dataset:
    text_columns = (data.text_column_names or "text").split(",")
    label_column = data.label_column_name or "label"
    for column in text_columns:
        check_text_column(dataset, column, "text_column_names")
    require_one_of("label_column_name", label_column, dataset.column_names)
    feature = dataset.features[label_column]
    kind = column_kind(dataset, label_column)
    if not (kind in (*TEXT_KINDS, "bool") or kind.startswith(("int", "uint"))):
        raise ValueError(
            f"label_column_name: expected class names or whole numbers in {label_column!r},"
            f" got {kind}"
        )

    def join(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[str]]:
        columns = [rows[column] for column in text_columns]
        labels = rows[label_column]
        for number, label in zip(numbers, labels, strict=True):
            if label is None or label == "":
                raise ValueError(
                    f"label_column_name: expected a class in every row of {label_column!r}, got"
                    f" none in row {number + 1}"
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
        with_indices=True,
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


def build_classifier(
    arguments: ModelArguments,
    checkpoint: str | None,
    data: ClassificationArguments,
    examples: dict[str, Dataset],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and classifier: the given ones, or new ones for the classes in training.

    Raises:
        ValueError: they cannot be loaded, there are fewer than two classes, or the model cannot
            classify or takes no texts so long.
    """
    texts = classes = None
    if "train" in examples:
        texts, classes = examples["train"]["text"], class_names(examples["train"])
    config = CLASSIFICATION.given_config(arguments, checkpoint, classes)
    tokenizer = load_tokenizer(arguments, checkpoint, texts)
    longest = max(data.max_seq_length, data.longest_input)
    config = config or new_config(arguments, tokenizer, longest, classes=classes)
    model = CLASSIFICATION.load_model(arguments, config, tokenizer, longest)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def encode_examples(
    examples: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    label2id: dict[str, int],
    data: ClassificationArguments,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Texts as the inputs and the numbers of their classes as the labels of a classifier.

    Texts longer than `data.max_seq_length` in training and `data.longest_input` in evaluation lose
    their ends; with `data.split_train_texts` those in training become several examples instead.

    Raises:
        ValueError: there is a class that `label2id` does not have, or the tokenizer cannot cut
            texts into pieces.
    """
    if data.split_train_texts and "train" in examples:
        require_offsets(tokenizer)

    def encode(rows: dict[str, list[Any]], split: str) -> dict[str, Any]:
        unknown = set(rows["label"]) - set(label2id)
        if unknown:
            raise ValueError(
                f"label_column_name: expected one of the model's classes {sorted(label2id)}, got"
                f" {sorted(unknown)}"
            )
        in_pieces = split == "train" and data.split_train_texts
        length = data.max_seq_length if split == "train" else data.longest_input
        encoded = tokenizer(
            rows["text"] if in_pieces else beginnings(tokenizer, rows["text"], length),
            max_length=length,
            padding="max_length" if data.pad_to_max_length else False,
            truncation=True,
            return_overflowing_tokens=in_pieces,
        )
        labels = [label2id[label] for label in rows["label"]]
        if in_pieces:
            labels = [labels[own] for own in encoded["overflow_to_sample_mapping"]]
        names = ("input_ids", "attention_mask")
        return {name: encoded[name] for name in names} | {"labels": labels}

    return {
        split: tokenize(rows, partial(encode, split=split), data, training)
        for split, rows in examples.items()
    }


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
            beginnings(tokenizer, [row["text"]], data.longest_input),
            max_length=data.longest_input,
            truncation=True,
            return_tensors="pt",
        ).to(model.device)
        probabilities = model(**inputs).logits[0].float().softmax(-1)
        best = int(probabilities.argmax())
        answer = f"{model.config.id2label[best]} (probability {float(probabilities[best]):.2f})"
        parts = [("text", row["text"]), ("class", row["label"]), ("output", answer)]
        found.append(Sample(title=f"example {number}", parts=parts))
    return found
