"""From data files and Hub data sets to columns of texts and to token ids."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase, TrainingArguments

from reformer_hf.tokenization import settled_tokens
from training.arguments import (
    DataTrainingArguments,
    ModelArguments,
    SummarizationArguments,
    require_one_of,
)
from training.data_files import read_table

logger = logging.getLogger(__name__)

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
# How Arrow stores strings; pandas 3 and dictionary-encoded columns bring others than the first.
TEXT_KINDS = ("string", "large_string", "string_view")
# A first guess at the length of a beginning; of most texts and tokenizers it is enough.
_FIRST_CHARACTERS_PER_TOKEN = 8
_CHARACTERS_FOR_CONTEXT = 512
_SUMMARY_COLUMNS = ("summary", "abstract", "highlights", "target", "headline")


def load_splits(data: DataTrainingArguments, model: ModelArguments) -> dict[str, Dataset] | None:
    """The Hub data set or the local files that `data` names, by split; None if it names neither.

    Raises:
        ValueError: a data set or file cannot be read, or a file is empty.
    """
    if data.dataset_name is None:
        files = data.files.items()
        return {split: read_table(file, model.cache_dir) for split, file in files} or None
    name = data.dataset_name
    try:
        splits = load_dataset(
            name, data.dataset_config_name, cache_dir=model.cache_dir, token=model.token
        )
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"dataset_name: cannot load {name!r}: {reason}") from error
    if not isinstance(splits, DatasetDict):
        raise ValueError(f"dataset_name: expected splits in {name!r}, got {type(splits).__name__}")
    return dict(splits)


def needed_splits(
    data: DataTrainingArguments, training: TrainingArguments
) -> list[tuple[str, str, int | None]]:
    """The splits of this run: name, the argument that asks for it, and the most rows to use."""
    known = [
        ("train", "do_train", data.max_train_samples),
        ("validation", "do_eval", data.max_eval_samples),
        ("test", "do_predict", data.max_predict_samples),
    ]
    return [needed for needed in known if getattr(training, needed[1])]


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


def column_kind(dataset: Dataset, column: str) -> str:
    """The type of the values in `column`: "string", "int64", ..., or what lists and objects are."""
    feature = dataset.features[column]
    return getattr(feature, "dtype", type(feature).__name__)


def check_text_column(dataset: Dataset, column: str, argument: str) -> None:
    """Raise ValueError unless `dataset` has `column`, with strings (in some rows maybe nothing)."""
    require_one_of(argument, column, dataset.column_names)
    kind = column_kind(dataset, column)
    if kind not in TEXT_KINDS:
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


def beginnings(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int
) -> list[str]:
    """As much of each text as the tokenizer needs to see to cut it to `max_length` tokens.

    `tokenizer(beginnings(...), max_length=max_length, truncation=True)` gives the ids that the
    whole texts give, in time and memory for the tokens that are kept: a document may be hundreds of
    times as long. Tokenizers of which that cannot be told (see
    `reformer_hf.tokenization.settled_tokens`), or that keep the end of a text, get whole texts.
    """
    return [_beginning(tokenizer, text, max_length) for text in texts]


def _beginning(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> str:
    size = _FIRST_CHARACTERS_PER_TOKEN * max_length + _CHARACTERS_FOR_CONTEXT
    while size < len(text):
        settled = settled_tokens(tokenizer, text[:size])
        if settled is None or tokenizer.truncation_side != "right":
            return text
        if settled >= max_length:
            return text[:size]
        size *= 2
    return text


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


def _choose_column(
    dataset: Dataset, asked: str | None, candidates: Sequence[str], argument: str
) -> str:
    if asked is not None:
        require_one_of(argument, asked, dataset.column_names)
        return asked
    for candidate in candidates:
        if candidate in dataset.column_names:
            return candidate
    raise ValueError(
        f"{argument}: expected the name of one of the columns {dataset.column_names}, got none, and"
        f" none of them is called {', '.join(candidates)}"
    )


def select_pairs(dataset: Dataset, columns: tuple[str, str], limit: int | None) -> Dataset:
    """The first `limit` rows that have both texts, as columns "document" and "summary".

    Raises:
        ValueError: a column is missing or holds no text, or no row has both.
    """
    for column, argument in zip(columns, ("text_column", "summary_column"), strict=True):
        check_text_column(dataset, column, argument)
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
