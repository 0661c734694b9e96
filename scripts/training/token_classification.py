"""What is particular to token classification: words with a tag each, and the tagger."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, TokenClassificationArguments, require_one_of
from training.contracts import contract_splits
from training.data import first_rows, load_splits, needed_splits, required_split, tokenize
from training.models import Task, load_tokenizer, new_config, require_offsets
from training.reporting import MetricRow, Sample
from training.scoring import IGNORED_LABEL, rows_of_metrics

TOKEN_CLASSIFICATION = Task(
    "token classification",
    AutoModelForTokenClassification,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "max_seq_length",
    "TOKEN_CLS",
)
# What `load_tagged` reads when no data are named.
DEFAULT_DATA = "generated contracts: parties, dates, amounts and places"
_OUTSIDE = "O"


def load_tagged(
    data: TokenClassificationArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "words" and "tags" (names) of the splits that this run needs.

    Raises:
        ValueError: data cannot be read, or a split or column is missing, empty or unsuitable.
    """
    raw = load_splits(data, model)
    if raw is None:
        raw = contract_splits()
    return {
        split: _select(first_rows(required_split(raw, split, argument), limit), data)
        for split, argument, limit in needed_splits(data, training)
    }


def _select(table: Dataset, data: TokenClassificationArguments) -> Dataset:
    words = data.text_column_name or "tokens"
    tags = data.label_column_name or "ner_tags"
    require_one_of("text_column_name", words, table.column_names)
    require_one_of("label_column_name", tags, table.column_names)
    feature = getattr(table.features[tags], "feature", None)

    def read(row: dict[str, Any], number: int) -> dict[str, list[str]]:
        own, named = row[words], row[tags]
        if not isinstance(own, list) or not isinstance(named, list) or len(own) != len(named):
            raise ValueError(
                f"label_column_name: expected a tag for every word of a list in row {number + 1},"
                f" got {type(own).__name__} and {type(named).__name__}"
            )
        if isinstance(feature, ClassLabel):
            named = [feature.int2str(tag) for tag in named]
        return {"words": [str(word) for word in own], "tags": [str(tag) for tag in named]}

    return table.map(
        read, with_indices=True, remove_columns=table.column_names, desc="Reading words and tags"
    )


def tag_names(dataset: Dataset) -> list[str]:
    """The tags in `dataset`, "O" first.

    Raises:
        ValueError: there are fewer than two.
    """
    names = sorted({tag for tags in dataset["tags"] for tag in tags}, key=lambda x: (x != "O", x))
    if len(names) < 2:
        raise ValueError(f"label_column_name: expected at least two tags, got {names}")
    return names


def build_tagger(
    arguments: ModelArguments,
    checkpoint: str | None,
    data: TokenClassificationArguments,
    examples: dict[str, Dataset],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and tagger: the given ones, or new ones for the tags in training.

    Raises:
        ValueError: they cannot be loaded, the tokenizer does not say where its tokens stand, or the
            model takes no texts so long.
    """
    texts: Iterator[str] | None = None
    tags = None
    if "train" in examples:
        tags = tag_names(examples["train"])
        texts = (" ".join(words) for words in examples["train"]["words"])
    config = TOKEN_CLASSIFICATION.given_config(arguments, checkpoint, tags)
    tokenizer = load_tokenizer(arguments, checkpoint, texts)
    require_offsets(tokenizer)
    config = config or new_config(arguments, tokenizer, data.max_seq_length, classes=tags)
    model = TOKEN_CLASSIFICATION.load_model(arguments, config, tokenizer, data.max_seq_length)
    return tokenizer, model


def encode_tagged(
    examples: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    label2id: dict[str, int],
    data: TokenClassificationArguments,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Texts in pieces as the inputs; the first token of every word has its tag as the label.

    Raises:
        ValueError: there is a tag that `label2id` does not have.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        unknown = {tag for tags in rows["tags"] for tag in tags} - set(label2id)
        if unknown:
            raise ValueError(
                f"label_column_name: expected one of the model's tags {sorted(label2id)}, got"
                f" {sorted(unknown)}"
            )
        found = tokenizer(
            [" ".join(words) for words in rows["words"]],
            max_length=data.max_seq_length,
            truncation=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        labels = [
            _labels(
                offsets,
                rows["words"][text],
                [label2id[tag] for tag in rows["tags"][text]],
            )
            for offsets, text in zip(
                found["offset_mapping"], found["overflow_to_sample_mapping"], strict=True
            )
        ]
        names = ("input_ids", "attention_mask")
        return {name: found[name] for name in names} | {"labels": labels}

    return {split: tokenize(rows, encode, data, training) for split, rows in examples.items()}


def _labels(
    offsets: Sequence[tuple[int, int]], words: Sequence[str], tags: Sequence[int]
) -> list[int]:
    """Labels of tokens, told by where they stand in the words joined by blanks."""
    starts, position = {}, 0
    for word, tag in zip(words, tags, strict=True):
        starts[position] = tag
        position += len(word) + 1
    labels = []
    for start, stop in offsets:
        # A token may begin with the blank before a word.
        inside = [at for at in (start, start + 1) if at < stop and at in starts]
        labels.append(starts[inside[0]] if inside else IGNORED_LABEL)
    return labels


def entity_scores(
    predicted: Sequence[Sequence[str]], actual: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of whole entities (seqeval), and the share of right tags."""
    tags = [list(row) for row in actual], [list(row) for row in predicted]
    return {
        "precision": float(precision_score(*tags, zero_division=0)),
        "recall": float(recall_score(*tags, zero_division=0)),
        "f1": float(f1_score(*tags, zero_division=0)),
        "accuracy": float(accuracy_score(*tags)),
    }


class TagScorer:
    """Computes the entity metrics of one split for a trainer, with a baseline that looks words up.

    The baseline gives every word the tag that it has most often in training, and one that it does
    not know the tag "O".

    Args:
        names: of the tags, by number.
        baseline: scores of the baseline on the same words.
    """

    def __init__(self, names: Sequence[str], baseline: Mapping[str, float]) -> None:
        self._names = names
        self._baseline = baseline

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scores of the model and of the baseline; predictions are numbers of tags."""
        labels = np.asarray(prediction.label_ids)
        found, actual = [], []
        for own, predicted in zip(labels, np.asarray(prediction.predictions), strict=True):
            known = own != IGNORED_LABEL
            actual.append([self._names[tag] for tag in own[known]])
            found.append([self._names[tag] for tag in predicted[known]])
        baseline = {f"lookup_{name}": score for name, score in self._baseline.items()}
        return entity_scores(found, actual) | baseline

    @staticmethod
    def rows(metrics: dict[str, float], prefix: str) -> list[MetricRow]:
        """Entity metrics of model and baseline, from metrics with a `prefix`."""
        names = {"f1": "F1", "precision": "precision", "recall": "recall"}
        return rows_of_metrics(metrics, prefix, names, {"lookup": "words looked up"})


def lookup_baseline(known: Dataset, examples: Dataset) -> dict[str, float]:
    """Scores of giving every word the tag that it has most often in `known`, or "O"."""
    counts: dict[str, Counter[str]] = {}
    for row in known:
        for word, tag in zip(row["words"], row["tags"], strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    best = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    predicted = [[best.get(word, _OUTSIDE) for word in words] for words in examples["words"]]
    return entity_scores(predicted, list(examples["tags"]))


@torch.no_grad()
def tagged_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    encoded: Dataset,
) -> list[Sample]:
    """Entities that the tagger finds in the first piece of the first three examples."""
    model.eval()
    found = []
    for number, row in enumerate(first_rows(examples, 3)):
        piece = encoded[number]
        inputs = {
            name: torch.tensor([piece[name]], device=model.device)
            for name in ("input_ids", "attention_mask")
        }
        best = model(**inputs).logits[0].argmax(-1).tolist()
        known = [
            model.config.id2label[tag]
            for tag, label in zip(best, piece["labels"], strict=True)
            if label != IGNORED_LABEL
        ]
        parts = [
            ("text", " ".join(row["words"])),
            ("entities", _entities(row["words"], row["tags"])),
            ("output", _entities(row["words"], known)),
        ]
        found.append(Sample(title=f"example {number}", parts=parts))
    return found


def _entities(words: Sequence[str], tags: Sequence[str]) -> str:
    """Words with a tag, those of one entity on one line."""
    lines: list[str] = []
    for word, tag in zip(words, tags, strict=False):
        if tag == _OUTSIDE:
            continue
        kind = tag.split("-", 1)[-1]
        if tag.startswith("I-") and lines and lines[-1].startswith(f"{kind}:"):
            lines[-1] += f" {word}"
        else:
            lines.append(f"{kind}: {word}")
    return "\n".join(lines) or "(none)"
