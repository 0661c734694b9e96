"""From arguments to splits: which data set, which columns, which rows, and their token ids."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from training.arguments import DataTrainingArguments, ModelArguments, SummarizationArguments
from training.data_files import load_hub_dataset, read_table
from training.stdlib_corpus import stdlib_splits

logger = logging.getLogger(__name__)

Splits = dict[str, Dataset]

IGNORED_LABEL = -100

# Columns of well-known summarization data sets whose names do not speak for themselves.
_KNOWN_COLUMNS = {
    "big_patent": ("description", "abstract"),
    "ccdv/arxiv-summarization": ("article", "abstract"),
    "ccdv/pubmed-summarization": ("article", "abstract"),
    "cnn_dailymail": ("article", "highlights"),
    "knkarthick/samsum": ("dialogue", "summary"),
    "samsum": ("dialogue", "summary"),
}
_TEXT_COLUMNS = ("document", "text", "article", "report", "dialogue", "source")
_SUMMARY_COLUMNS = ("summary", "abstract", "highlights", "target", "headline")


def load_splits(data: DataTrainingArguments, model: ModelArguments) -> Splits | None:
    """The Hub data set or the local files that `data` names; None if it names neither.

    Raises:
        ValueError: a data set or file cannot be read, or a file is empty.
    """
    if data.dataset_name is not None:
        return load_hub_dataset(
            data.dataset_name,
            data.dataset_config_name,
            cache_dir=model.cache_dir,
            token=model.token,
        )
    files = data.files
    return {split: read_table(file, model.cache_dir) for split, file in files.items()} or None


def load_summarization_splits(data: SummarizationArguments, model: ModelArguments) -> Splits:
    """Like `load_splits`, with the Python standard library for who names no data at all."""
    splits = load_splits(data, model)
    if splits is None:
        logger.info("No data given: summarizing the Python standard library")
        splits = stdlib_splits()
    return splits


def describe_data(data: DataTrainingArguments, default: str) -> str:
    """One line that says where the examples come from, without local paths.

    `default` describes what the script uses when no data are named.
    """
    if data.dataset_name is not None:
        return " ".join(filter(None, [data.dataset_name, data.dataset_config_name]))
    if data.files:
        names = [file.replace("\\", "/").rsplit("/", 1)[-1] for file in data.files.values()]
        return "local files " + ", ".join(names)
    return default


def required_split(splits: Mapping[str, Dataset], split: str, purpose: str) -> Dataset:
    """`splits[split]`.

    Raises:
        ValueError: the data have no such split, or nothing in it.
    """
    if split not in splits:
        raise ValueError(f"{purpose}: expected a {split!r} split, got {sorted(splits)}")
    if len(splits[split]) == 0:
        raise ValueError(f"{purpose}: expected examples in the {split!r} split, got none")
    return splits[split]


def check_column(dataset: Dataset, column: str, argument: str) -> None:
    """Raise ValueError, naming the columns there are, unless `dataset` has `column`."""
    if column not in dataset.column_names:
        raise ValueError(f"{argument}: expected one of {dataset.column_names}, got {column!r}")


def _choose_column(
    dataset: Dataset, asked: str | None, candidates: Sequence[str], argument: str
) -> str:
    if asked is not None:
        check_column(dataset, asked, argument)
        return asked
    for candidate in candidates:
        if candidate in dataset.column_names:
            return candidate
    raise ValueError(
        f"{argument}: expected the name of one of the columns {dataset.column_names}, got none, and"
        f" none of them is called {', '.join(candidates)}"
    )


def summarization_columns(data: SummarizationArguments, dataset: Dataset) -> tuple[str, str]:
    """The columns of documents and summaries: the ones named, or those with a telling name.

    Raises:
        ValueError: a named column does not exist, or no column has a telling name.
    """
    known = _KNOWN_COLUMNS.get(data.dataset_name or "")
    texts = known[:1] if known else _TEXT_COLUMNS
    summaries = known[1:] if known else _SUMMARY_COLUMNS
    return (
        _choose_column(dataset, data.text_column, texts, "text_column"),
        _choose_column(dataset, data.summary_column, summaries, "summary_column"),
    )


def select_pairs(dataset: Dataset, columns: tuple[str, str], limit: int | None) -> Dataset:
    """The first `limit` rows that have both texts, as columns "document" and "summary".

    Raises:
        ValueError: a column is missing or holds no text, or no row has both.
    """
    for column, argument in zip(columns, ("text_column", "summary_column"), strict=True):
        check_column(dataset, column, argument)
        check_text(dataset, column, argument)
    if columns[0] == columns[1]:
        raise ValueError(f"summary_column: expected another column than the text's, got {columns}")
    names = dict(zip(columns, ("document", "summary"), strict=True))
    pairs = dataset.select_columns(list(columns)).rename_columns(names)
    complete = pairs.filter(
        lambda row: bool(row["document"] and row["summary"]), desc="Leaving out empty texts"
    )
    if len(complete) == 0:
        raise ValueError(
            f"text_column, summary_column: expected rows with both texts, got none of {len(pairs)}"
        )
    if len(complete) < len(pairs):
        logger.warning("Left out %d rows with an empty text", len(pairs) - len(complete))
    return first_rows(complete, limit)


def check_text(dataset: Dataset, column: str, argument: str) -> None:
    """Raise ValueError unless `column` holds strings (or nothing at all, in some rows)."""
    kind = getattr(dataset.features[column], "dtype", type(dataset.features[column]).__name__)
    if kind not in ("string", "large_string"):
        raise ValueError(f"{argument}: expected text in column {column!r}, got {kind}")


def first_rows(dataset: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows, or all of them."""
    return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))


def tokenize(
    dataset: Dataset,
    encode: Callable[[dict[str, list[Any]]], Mapping[str, Any]],
    data: DataTrainingArguments,
    training: TrainingArguments,
) -> Dataset:
    """`encode` applied to batches of rows; only what it returns is kept."""
    with training.main_process_first(desc="tokenization"):
        return dataset.map(
            encode,
            batched=True,
            batch_size=32,  # documents can be a million tokens long
            num_proc=data.preprocessing_num_workers,
            remove_columns=dataset.column_names,
            load_from_cache_file=not data.overwrite_cache,
            desc="Tokenizing",
        )


def pair_encoder(
    tokenizer: PreTrainedTokenizerBase, data: SummarizationArguments, max_target_length: int
) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
    """Encodes "document" as the input and "summary" as the labels of a seq2seq model."""

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(
            [data.source_prefix + document for document in rows["document"]],
            max_length=data.max_source_length,
            padding="max_length" if data.pad_to_max_length else False,
            truncation=True,
        )
        labels = tokenizer(
            text_target=rows["summary"], max_length=max_target_length, truncation=True
        )
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels["input_ids"],
        }

    return encode
