"""Reading data files: json, jsonl, csv and txt, also gzipped.

Tables are written to the cache of the `datasets` library and mapped from there, so they may be
larger than memory. A file is opened by its name alone: brackets, stars and colons in it mean
nothing. Files are in UTF-8.
"""

import contextlib
import gzip
import shlex
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset
from datasets.exceptions import DatasetsError

from training.records import Record, csv_features, csv_records, json_features, json_records

_KINDS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".txt": "text"}
_GZIP = ".gz"
_READERS = {"json": (json_records, json_features), "csv": (csv_records, csv_features)}
# Documents may be megabytes; these are held in memory until they are written.
_ROWS_PER_WRITE = 100
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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
    if not beginning.strip(b"\xef\xbb\xbf \t\r\n"):
        raise ValueError(f"data file: expected records in {path!r}, got an empty file")
    # Every second byte of Latin text in UTF-16 is 0, which UTF-8 would take for a character.
    if beginning.startswith(_UTF16_MARKS) or beginning.count(0) > len(beginning) // 4:
        raise _not_utf8(path, "what looks like UTF-16", "UTF-16")


def _not_utf8(path: str, found: str, encoding: str = "ENCODING") -> ValueError:
    file = Path(path)
    name = f"utf8-{file.stem if _is_compressed(path) else file.name}"
    source, target = shlex.quote(path), shlex.quote(str(file.with_name(name)))
    command = f"iconv -f {encoding} -t UTF-8"
    if _is_compressed(path):
        command = f"gunzip -c {source} | {command} > {target}"
    else:
        command = f"{command} {source} > {target}"
    return ValueError(
        f"data file: expected UTF-8 text in {path!r}, got {found}; convert it: {command}"
    )


def _is_compressed(path: str) -> bool:
    return Path(path).suffix.lower() == _GZIP


def _opener(path: str) -> Any:
    return gzip.open if _is_compressed(path) else open


@contextlib.contextmanager
def _open_text(path: str) -> Iterator[TextIO]:
    """`path` as text, line ends as they are; what goes wrong within becomes a ValueError."""
    check_readable(path)
    try:
        # The byte order mark that some programs put in front is no text: "utf-8-sig" skips it.
        with _opener(path)(path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        found = f"the byte 0x{byte:02x} of another encoding (ISO-8859-1, GB18030, ...)"
        raise _not_utf8(path, found) from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data file: cannot read {path!r}: {error}") from error


def read_table(path: str, cache_dir: str | None = None) -> Dataset:
    """The records of a json, jsonl or csv file, with at least one row.

    Cells and strings are what they spell: "NA" and "null" are texts, an empty cell is an empty
    text. A csv column whose cells all spell numbers holds numbers. A key that a json record lacks
    is None in its row.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, is empty or is malformed.
    """
    kind = file_kind(path)
    read, find_features = _READERS[kind]
    with _open_text(path) as stream:
        features = find_features(read(stream, path), path)
    state = Path(path).stat()
    try:
        return Dataset.from_generator(
            _rows,
            features=features,
            cache_dir=cache_dir,
            # The cache knows a file by these.
            gen_kwargs={
                "path": str(Path(path).absolute()),
                "kind": kind,
                "columns": tuple(features),
                "state": (state.st_size, state.st_mtime_ns),
            },
            writer_batch_size=_ROWS_PER_WRITE,
        )
    except (DatasetsError, OSError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"data file: cannot read {path!r} as {kind}: {reason}") from error


def _rows(path: str, kind: str, columns: Sequence[str], state: tuple[int, int]) -> Iterator[Record]:
    """What `Dataset.from_generator` writes; `state` tells versions of the file apart."""
    read, _ = _READERS[kind]
    with _open_text(path) as stream:
        for _, record in read(stream, path):
            yield {column: record.get(column) for column in columns}


def read_text(path: str) -> str:
    """The whole text of a .txt or .txt.gz file in UTF-8.

    Raises:
        ValueError: the file cannot be read, is empty or is not UTF-8.
    """
    # Line ends are kept as they are: they are text to be modelled.
    with _open_text(path) as stream:
        return stream.read()
