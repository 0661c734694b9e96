"""Reading data: what can be read is read, what cannot is refused with a line that says why."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from training.arguments import DataTrainingArguments, ModelArguments
from training.data import load_splits, required_split
from training.data_files import file_kind, read_table, read_text

ROWS = [{"id": 1, "document": "long text", "summary": "text"}, {"document": "b", "summary": "c"}]


def write(path: Path, content: str) -> str:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return str(path)


CONTENTS = {
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)),
    "rows.json": json.dumps(ROWS),
    "rows.csv": "document,summary\nlong text,text\nb,c\n",
}


@pytest.mark.parametrize("name", [*CONTENTS, *(f"{name}.gz" for name in CONTENTS)])
def test_every_file_format_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name, CONTENTS[name.removesuffix(".gz")])
    table = read_table(path, str(tmp_path / "cache"))
    assert list(table["document"]) == ["long text", "b"]
    assert list(table["summary"]) == ["text", "c"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jsonl", "", "empty file"),
        ("blank.csv", " \n\n", "empty file"),
        ("empty.jsonl.gz", "", "empty file"),
        ("broken.jsonl", '{"a": 1}\n{"a": oops\n', "broken.jsonl"),
        ("header.csv", "document,summary\n", "header.csv"),
        ("rows.parquet", "x", "expected one of .json, .jsonl, .csv"),
        ("rows.txt", "x", "expected one of .json, .jsonl, .csv"),
        ("rows", "x", "expected one of .json, .jsonl, .csv"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path, name, content, reason):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=reason) as refusal:
        read_table(path, str(tmp_path / "cache"))
    assert name in str(refusal.value)


def test_missing_file_and_directory_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got nothing"):
        read_table(str(tmp_path / "none.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="got a directory"):
        read_table(str(tmp_path / "folder.jsonl"))


def test_file_that_only_claims_to_be_gzip_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_text("not compressed")
    with pytest.raises(ValueError, match=r"cannot read .*rows.jsonl.gz"):
        read_table(str(path))


def test_text_files_keep_their_line_ends_and_must_be_utf8(tmp_path):
    text = "Zeile eins\r\n第二行\n"
    assert read_text(write(tmp_path / "a.txt.gz", text)) == text
    latin = tmp_path / "latin.txt"
    latin.write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(str(latin))


def test_file_kind_looks_through_gz_and_case():
    assert file_kind("a.b/x.JSONL.GZ") == "json"
    assert file_kind("x.txt", accepted=("text",)) == "text"


def test_missing_and_empty_splits_are_refused():
    table = Dataset.from_dict({"a": [1]})
    with pytest.raises(ValueError, match=r"do_eval: .*'validation' split, got \['train'\]"):
        required_split({"train": table}, "validation", "do_eval")
    with pytest.raises(ValueError, match="expected examples"):
        required_split({"train": table.select([])}, "train", "do_train")


def test_data_are_described_without_local_paths(tmp_path):
    path = write(tmp_path / "rows.jsonl", CONTENTS["rows.jsonl"])
    data = DataTrainingArguments(train_file=path)
    assert data.description == "local files rows.jsonl"
    assert set(load_splits(data, ModelArguments(cache_dir=str(tmp_path / "c")))) == {"train"}
    assert DataTrainingArguments().description is None
    assert load_splits(DataTrainingArguments(), ModelArguments()) is None
