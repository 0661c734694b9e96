"""The records of csv and json text, each with the line it begins in.

Nothing is guessed and nothing is dropped: a field that has no column, a quote that is not closed
or a key that occurs twice is refused with its line. What a cell or a string spells is what it is:
"NA", "null" and "007" stay as they are written.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import pyarrow
from datasets import Features, Value

Record = dict[str, Any]

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
# The csv module stops at 128 KiB unless told otherwise; a C long has 32 bits on some systems.
_LONGEST_FIELD = (1 << 31) - 1
# Spellings that a number gives back; "007" and "+1" are names of something.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_SPACE = re.compile(r"[ \t\r\n]*")
# Records whose types are found together; documents may be megabytes.
_RECORDS_PER_BATCH = 100


def refusal(path: str, line: int, reason: str) -> ValueError:
    """The error of a file whose text is at fault in `line`."""
    return ValueError(f"data file: cannot read {path!r}: line {line}: {reason}")


def csv_records(stream: TextIO, path: str) -> Iterator[tuple[int, Record]]:
    """Line and fields of every row, as texts; blank lines are no rows.

    Args:
        stream: opened with `newline=""`.
        path: how errors call the file.

    Raises:
        ValueError: the header is no list of different names separated by commas, a row has another
            number of fields than the header, or a quote is out of place.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    first = stream.readline()
    for separator, name in _OTHER_SEPARATORS.items():
        if separator in first and "," not in first:
            found = f"one column {first.strip()!r} with {name} in it"
            raise refusal(path, 1, f"expected columns separated by commas, got {found}")
    rows = _csv_rows(itertools.chain([first], stream), path)
    header_line, header = next(rows, (1, []))
    if not all(name.strip() for name in header):
        hint = "the index of a pandas table has none: write it with to_csv(..., index=False)"
        raise refusal(path, header_line, f"expected a name for every column, got {header} ({hint})")
    if len(set(header)) < len(header):
        raise refusal(path, header_line, f"expected different names of columns, got {header}")
    for number, (line, row) in enumerate(rows, start=1):
        if len(row) != len(header):
            raise refusal(
                path,
                line,
                f"expected {len(header)} fields in row {number}, as the header {header} has, got"
                f" {len(row)} (a text with commas in it needs quotes around it)",
            )
        yield line, dict(zip(header, row, strict=True))


def _csv_rows(lines: Iterable[str], path: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, strict=True)
    width = 1
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            expected = "quotes around whole fields, and quotes within them doubled"
            raise refusal(
                path, line, f"expected {expected}, in the row that begins here: {error}"
            ) from error
        if row is None:
            return
        # A line of spaces is a text only where there is but one column.
        if row and (width == 1 or len(row) > 1 or row[0].strip()):
            width = max(width, len(row))
            yield line, row


def csv_features(records: Iterable[tuple[int, Record]], path: str) -> Features:
    """The columns: whole numbers or numbers where every cell spells one, texts everywhere else.

    Raises:
        ValueError: there are no records, or the text is malformed.
    """
    patterns: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for _, record in records:
        if not patterns:
            candidates = [("int64", _INTEGER), ("float64", _DECIMAL)]
            patterns = dict.fromkeys(record, candidates)
        for name, candidates in patterns.items():
            if candidates:
                patterns[name] = [kind for kind in candidates if kind[1].fullmatch(record[name])]
    _require_columns(patterns, path)
    return Features(
        {name: Value(kinds[0][0] if kinds else "string") for name, kinds in patterns.items()}
    )


def json_records(stream: TextIO, path: str) -> Iterator[tuple[int, Record]]:
    """Line and content of every record: an object on each line, objects over several lines, a list.

    Only a list and objects over several lines are held in memory as a whole.

    Raises:
        ValueError: the text is no JSON or nested too deep; a record is no object or has a key
            twice.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    for number, line in enumerate(stream, start=1):
        content = line.strip()
        if not content:
            continue
        if content.startswith("["):
            yield from _spread_records(line + stream.read(), number, path, decoder)
            return
        try:
            record = decoder.decode(line)
        except json.JSONDecodeError as error:
            if error.pos < len(line.rstrip()):
                raise refusal(path, number, str(error.msg)) from error
            # The line ends within an object; it may go on in the next.
            yield from _spread_records(line + stream.read(), number, path, decoder)
            return
        except (ValueError, RecursionError) as error:
            raise refusal(path, number, str(error)) from error
        yield number, _checked(record, number, path)


def _spread_records(
    text: str, first_line: int, path: str, decoder: json.JSONDecoder
) -> Iterator[tuple[int, Record]]:
    """The records of a list, or of objects one after another, wherever their lines end."""

    def skip(position: int) -> int:
        space = _SPACE.match(text, position)
        return space.end() if space else position

    position = skip(0)
    counted, line = 0, first_line
    is_list = text.startswith("[", position)
    if is_list:
        position = skip(position + 1)
        if text.startswith("]", position):
            return
    while is_list or position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        try:
            record, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            where = first_line + error.lineno - 1
            raise refusal(path, where, f"{error.msg}, in the record of line {line}") from error
        except (ValueError, RecursionError) as error:
            raise refusal(path, line, str(error)) from error
        yield line, _checked(record, line, path)
        position = skip(position)
        if is_list:
            follower = text[position : position + 1]
            if follower not in ("]", ","):
                raise refusal(path, line, "expected a comma or ] after the record that begins here")
            position = skip(position + 1)
            if follower == "]":
                if position < len(text):
                    raise refusal(path, line, "expected nothing after the list")
                return


def _object(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"expected every key once, got {[key for key, _ in pairs]}")
    return record


def _checked(record: Any, line: int, path: str) -> Record:
    if not isinstance(record, dict):
        raise refusal(path, line, f"expected an object with named values, got {record!r:.60}")
    return record


def json_features(records: Iterable[tuple[int, Record]], path: str) -> Features:
    """The columns: all keys that occur, with types that hold all their values.

    Whole numbers next to others become floating-point; nothing else is converted, so that a number
    among texts, or a list among numbers, is refused.

    Raises:
        ValueError: there are no records, the text is malformed, or a value is of another type than
            the values before it.
    """
    schema = pyarrow.schema([])
    records = iter(records)
    while batch := list(itertools.islice(records, _RECORDS_PER_BATCH)):
        try:
            schema = _widened(schema, [record for _, record in batch])
        except (pyarrow.ArrowException, ValueError, OverflowError):
            # Once more, one by one: which line is it?
            for line, record in batch:
                try:
                    schema = _widened(schema, [record])
                except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                    raise refusal(path, line, str(error)) from error
    _require_columns(schema.names, path)
    return Features.from_arrow_schema(schema)


def _widened(schema: pyarrow.Schema, records: list[Record]) -> pyarrow.Schema:
    found = pyarrow.schema(list(pyarrow.array(records).type))
    return pyarrow.unify_schemas([schema, found], promote_options="permissive")


def _require_columns(names: Iterable[str], path: str) -> None:
    if not list(names):
        raise ValueError(f"data file: expected records in {path!r}, got none")
