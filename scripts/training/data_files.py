"""Reading data files: json, jsonl, csv and txt, also gzipped.

Files are read through the `datasets` library, which maps them from disk, so they may be larger
than memory. Its errors name internals; here they become one line that names the file.
"""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

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
