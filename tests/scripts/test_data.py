"""Reading data: what can be read is read, what cannot is refused with a line that says why."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from training.arguments import (
    DataTrainingArguments,
    ModelArguments,
    RunArguments,
    SummarizationArguments,
    parse_arguments,
)
from training.data import (
    describe_data,
    load_splits,
    required_split,
    select_pairs,
    summarization_columns,
)
from training.data_files import file_kind, read_table, read_text
from training.presets import PRESETS, parse_overrides, preset_named, seq2seq_config

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


def test_columns_with_telling_names_are_found():
    table = Dataset.from_list([{"id": 1, "article": "a", "abstract": "b"}])
    assert summarization_columns(SummarizationArguments(), table) == ("article", "abstract")


def test_columns_of_well_known_data_sets_are_known():
    data = SummarizationArguments(dataset_name="big_patent")
    table = Dataset.from_list([{"description": "a", "abstract": "b", "text": "c"}])
    assert summarization_columns(data, table) == ("description", "abstract")


def test_missing_columns_are_refused_with_the_columns_there_are():
    table = Dataset.from_list([{"id": 1, "body": "a", "gist": "b"}])
    data = SummarizationArguments(text_column="boddy", summary_column="gist")
    with pytest.raises(ValueError, match=r"text_column: .*'id', 'body', 'gist'.*'boddy'"):
        summarization_columns(data, table)
    with pytest.raises(ValueError, match=r"summary_column: .*'id', 'body', 'gist'"):
        summarization_columns(SummarizationArguments(text_column="body"), table)


def test_rows_without_text_are_left_out_and_the_rest_is_limited():
    table = Dataset.from_dict(
        {"body": ["a", None, "b", "", "c"], "gist": ["x", "y", "", "z", "w"], "other": [1] * 5}
    )
    pairs = select_pairs(table, ("body", "gist"), limit=None)
    assert pairs.to_dict() == {"document": ["a", "c"], "summary": ["x", "w"]}
    assert len(select_pairs(table, ("body", "gist"), limit=1)) == 1


def test_columns_that_hold_no_text_are_refused():
    numbers = Dataset.from_dict({"body": [1, 2], "gist": ["x", "y"]})
    with pytest.raises(ValueError, match="expected text in column 'body', got int64"):
        select_pairs(numbers, ("body", "gist"), None)
    empty = Dataset.from_dict({"body": ["", "b"], "gist": ["x", ""]})
    with pytest.raises(ValueError, match="got none of 2"):
        select_pairs(empty, ("body", "gist"), None)


def test_missing_and_empty_splits_are_refused():
    table = Dataset.from_dict({"a": [1]})
    with pytest.raises(ValueError, match=r"do_eval: .*'validation' split, got \['train'\]"):
        required_split({"train": table}, "validation", "do_eval")
    with pytest.raises(ValueError, match="expected examples"):
        required_split({"train": table.select([])}, "train", "do_train")


def test_data_are_described_without_local_paths(tmp_path):
    path = write(tmp_path / "rows.jsonl", CONTENTS["rows.jsonl"])
    data = DataTrainingArguments(train_file=path)
    assert describe_data(data, "nothing") == "local files rows.jsonl"
    assert set(load_splits(data, ModelArguments(cache_dir=str(tmp_path / "c")))) == {"train"}
    assert describe_data(DataTrainingArguments(), "the default") == "the default"
    assert load_splits(DataTrainingArguments(), ModelArguments()) is None


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SummarizationArguments(max_source_length=0), "max_source_length.*got 0"),
        (lambda: SummarizationArguments(max_target_length=-1), "max_target_length.*got -1"),
        (lambda: SummarizationArguments(num_beams=0), "num_beams.*got 0"),
        (lambda: DataTrainingArguments(max_train_samples=0), "max_train_samples.*got 0"),
        (lambda: DataTrainingArguments(dataset_name="a", train_file="b"), "dataset_name"),
        (lambda: RunArguments(early_stopping_patience=0), "early_stopping_patience"),
        (lambda: ModelArguments(model_name_or_path="a", preset="tiny"), "preset"),
        (lambda: ModelArguments(model_name_or_path="a", config_overrides="b=1"), "config_overr"),
        (lambda: ModelArguments(tokenizer_name="a", vocab_size=300), "vocab_size"),
    ],
)
def test_impossible_arguments_are_refused(make, reason):
    with pytest.raises(ValueError, match=reason):
        make()


def test_arguments_can_come_from_a_json_file(tmp_path):
    path = write(tmp_path / "run.json", json.dumps({"max_source_length": 99, "preset": "demo"}))
    model, data = parse_arguments((ModelArguments, SummarizationArguments), [path])
    assert (model.preset, data.max_source_length) == ("demo", 99)
    with pytest.raises(ValueError, match="expected a JSON file"):
        parse_arguments((ModelArguments,), [str(tmp_path / "none.json")])


def test_configuration_overrides():
    assert parse_overrides('{"attn_layers": ["full"]}') == {"attn_layers": ["full"]}
    overrides = "num_hashes=4,hidden_dropout_prob=0.5,reversible=False,attention_pattern=chunk"
    assert parse_overrides(overrides) == {
        "num_hashes": 4,
        "hidden_dropout_prob": 0.5,
        "reversible": False,
        "attention_pattern": "chunk",
    }
    assert parse_overrides(None) == {}
    for bad in ("{oops", "a", "a=1,,b=2"):
        with pytest.raises(ValueError, match="config_overrides"):
            parse_overrides(bad)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_make_configurations_for_the_lengths_asked(name):
    config = seq2seq_config(
        preset_named(name),
        max_source_length=3000,
        max_target_length=300,
        token_fields={"vocab_size": 1000, "pad_token_id": 0, "eos_token_id": 1},
    )
    assert config.max_position_embeddings >= 3000
    assert config.max_target_positions >= 300
    assert config.vocab_size == 1000


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="'base', 'demo', 'large', 'small', 'tiny'"):
        preset_named("huge")
