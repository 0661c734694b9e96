"""Records are what the file spells, or the line that is at fault is named."""

import io
import json
from typing import Any

import pytest
from datasets import List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data_files import read_table
from training.records import csv_features, csv_records, json_features, json_records


def csv_rows(content: str) -> list[dict[str, Any]]:
    return [record for _, record in csv_records(io.StringIO(content, newline=""), "a.csv")]


def json_rows(content: str) -> list[dict[str, Any]]:
    return [record for _, record in json_records(io.StringIO(content, newline=""), "a.json")]


# ---- csv ----

CELLS = ["", "NA", "None", "null", "NULL", "nan", "N/A", "#N/A", "-", "007", "1", "1.0", " x ", "é"]


def test_cells_are_the_texts_they_spell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("n,text\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(CELLS)))
    table = read_table(str(path), str(tmp_path / "cache"))
    assert table["text"][:] == CELLS
    assert table["n"][:] == list(range(len(CELLS)))


@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)
    )
)
@settings(deadline=None)
def test_quoted_cells_hold_any_text(rows: list[list[str]]) -> None:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    content = "\r\n".join(["a,b", *quoted])
    assert [list(row.values()) for row in csv_rows(content)] == rows


def test_blank_lines_are_no_rows_and_an_empty_text_is_one():
    assert csv_rows("a,b\n\nx,y\n  \n") == [{"a": "x", "b": "y"}]
    assert csv_rows('a\n""\n\nx\n') == [{"a": ""}, {"a": "x"}]


def test_a_field_may_be_longer_than_the_csv_module_expects():
    assert csv_rows(f"a,b\n{'x' * 200_000},y\n")[0]["a"] == "x" * 200_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\nx,y\nx,y,z\n", "line 3: expected 2 fields in row 2, .* got 3"),
        ("a,b\nx\n", "line 2: expected 2 fields in row 1, .* got 1"),
        ('a,b\n"x\ny",z\nw\n', "line 4: expected 2 fields in row 2"),
        ("a\nx, y\n", "line 2: expected 1 fields in row 1, .* got 2"),
        ("a,b,a\nx,y,z\n", r"line 1: expected different names of columns, got \['a', 'b', 'a'\]"),
        (",a\n0,x\n", "line 1: expected a name for every column"),
        ("a, \nx,y\n", "line 1: expected a name for every column"),
        ("a;b\nx;y\n", "line 1: expected columns separated by commas, .* semicolons"),
        ('"a"\t"b"\nx\ty\n', "line 1: expected columns separated by commas, .* tabs"),
        ("a;b\nx, z;y\n", "line 1: expected columns separated by commas"),
        ('a,b\nx,y\n"x,y\nx,y\n', "line 3: expected quotes around whole fields"),
        ('a,b\n"x" z,y\n', "line 2: expected quotes around whole fields"),
    ],
)
def test_csv_that_would_lose_text_is_refused_with_its_line(content, expected):
    with pytest.raises(ValueError, match=f"'a.csv': {expected}"):
        csv_rows(content)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "0"], "int64"),
        (["1", "2.5", "1e3"], "float64"),
        (["1", "x"], "string"),
        (["1", ""], "string"),
        (["01", "2"], "string"),
        (["+1"], "string"),
        (["9" * 30], "float64"),
    ],
)
def test_a_column_holds_numbers_if_all_its_cells_spell_them(cells, kind):
    assert csv_features(((0, {"a": cell}) for cell in cells), "a.csv") == {"a": Value(kind)}


# ---- json ----

ROWS = [{"text": "007", "n": 1, "tags": ["x"]}, {"n": None, "date": "2020-01-01"}, {"text": "NA"}]


@pytest.mark.parametrize(
    "content",
    [
        "\n\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1], indent=1) + json.dumps(ROWS[2]),
    ],
    ids=["lines", "list", "list over lines", "objects over lines", "mixed"],
)
def test_json_records_are_the_same_however_they_are_laid_out(content, tmp_path):
    assert json_rows(content) == ROWS
    path = tmp_path / "a.json"
    path.write_text(content)
    table = read_table(str(path), str(tmp_path / "cache"))
    assert table[:] == {
        "text": ["007", None, "NA"],
        "n": [1, None, None],
        "tags": [["x"], None, None],
        "date": [None, "2020-01-01", None],
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1}\n{"a": oops}\n', "line 2: Expecting value"),
        ('{"a": 1}\n{"a":\n', "line 3: Expecting value, in the record of line 2"),
        ('[{"a": 1},\n{"a": }]', "line 2: Expecting value"),
        ('[{"a": 1},\n{"a": 2}\n', "line 2: expected a comma or ]"),
        ('[{"a": 1}]\n[]', "line 1: expected nothing after the list"),
        ('{"a": 1}\n"b"\n', "line 2: expected an object with named values, got 'b'"),
        ('["b"]', "line 1: expected an object with named values, got 'b'"),
        ('{"a": 1, "a": 2}', r"line 1: expected every key once, got \['a', 'a'\]"),
        ('{"a": ' + "[" * 200_000, "line 1: "),
        ('[\n{"a": 1, "a": 2}]', r"line 2: expected every key once"),
    ],
)
def test_malformed_json_is_refused_with_its_line(content, expected):
    with pytest.raises(ValueError, match=f"'a.json': {expected}"):
        json_rows(content)


@pytest.mark.parametrize("before", [1, 150])
@pytest.mark.parametrize("value", [1, True, ["x"], {"b": "x"}, "\ud800"])
def test_a_value_of_another_type_is_refused_with_its_line(before, value):
    records = [(line, {"a": "x"}) for line in range(1, before + 1)]
    records.append((before + 1, {"a": value}))
    with pytest.raises(ValueError, match=f"line {before + 1}: "):
        json_features(records, "a.json")


def test_types_hold_all_values_of_a_column():
    records = [(1, {"a": 1, "b": []}), (2, {"a": 2.5, "b": ["x"]}), (3, {"a": None, "c": None})]
    expected = {"a": Value("float64"), "b": List(Value("string")), "c": Value("null")}
    assert json_features(records, "a.json") == expected
