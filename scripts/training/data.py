"""From data files (json, jsonl, csv, txt; also gzipped) and Hub data sets to token ids.

Files are read through the `datasets` library, which maps them from disk, so they may be larger
than memory. Its errors name internals; here they become one line that names the file.
"""

import gzip
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from transformers import TrainingArguments

from training.arguments import DataTrainingArguments, ModelArguments, require_one_of

_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
_GZIP = ".gz"


def file_kind(path: str, accepted: Sequence[str] = ("json", "csv")) -> str:
    """ "json", "csv" or "text", by the extension of `path` (before ".gz").

    Raises:
        ValueError: another extension, or a kind that is not in `accepted`.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] == _GZIP:
        suffixes.pop()
    kind = _KINDS.get(suffixes[-1]) if suffixes else None
    if kind is None or kind not in accepted:
        endings = [ending for ending, known in _KINDS.items() if known in accepted]
        raise ValueError(
            f"data file: expected one of {', '.join(endings)} (also with {_GZIP}), got {path!r}"
        )
    return kind


def check_readable(path: str) -> None:
    """Raise ValueError unless `path` is a file with something in it."""
    file = Path(path)
    if not file.is_file():
        found = "a directory" if file.is_dir() else "nothing"
        raise ValueError(f"data file: expected a file at {path!r}, got {found}")
    try:
        with _opener(path)(path, "rb") as stream:
            beginning = stream.read(1 << 16)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data file: cannot read {path!r}: {error}") from error
    if not beginning.strip():
        raise ValueError(f"data file: expected records in {path!r}, got an empty file")


def _opener(path: str) -> Any:
    return gzip.open if Path(path).suffix.lower() == _GZIP else open


def read_table(path: str, cache_dir: str | None = None) -> Dataset:
    """The records of a json, jsonl or csv file, with at least one row.

    Raises:
        ValueError: the file cannot be read, is empty or is malformed.
    """
    kind = file_kind(path)
    check_readable(path)
    try:
        table = load_dataset(kind, data_files={"train": path}, split="train", cache_dir=cache_dir)
    except (DatasetsError, OSError, ValueError, StopIteration, pyarrow.ArrowException) as error:
        reason = " ".join(str(error.__cause__ or error).split()) or "no records in it"
        raise ValueError(f"data file: cannot read {path!r} as {kind}: {reason}") from error
    if len(table) == 0:
        raise ValueError(f"data file: expected records in {path!r}, got none")
    return table


def read_text(path: str) -> str:
    """The whole text of a .txt or .txt.gz file in UTF-8.

    Raises:
        ValueError: the file cannot be read, is empty or is not UTF-8.
    """
    check_readable(path)
    try:
        # Line ends are kept as they are: they are text to be modelled.
        with _opener(path)(path, "rt", encoding="utf-8", newline="") as stream:
            return stream.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"data file: cannot read {path!r} as UTF-8 text: {error}") from error


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


def check_text_column(dataset: Dataset, column: str, argument: str) -> None:
    """Raise ValueError unless `dataset` has `column`, with strings (in some rows maybe nothing)."""
    require_one_of(argument, column, dataset.column_names)
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
