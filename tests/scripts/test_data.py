"""Reading data: what can be read is read, what cannot is refused with a line that says why."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from reformer_hf.tokenization import byte_tokenizer, train_bpe_tokenizer
from training import classification
from training.arguments import (
    ClassificationArguments,
    DataTrainingArguments,
    ModelArguments,
    SummarizationArguments,
)
from training.classification import class_names, encode_examples, load_examples
from training.data import beginnings, check_text_column, load_splits, required_split, select_pairs
from training.data_files import file_kind, read_table, read_text
from training.sequence_to_sequence import encode_pairs

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


@pytest.mark.parametrize(
    ("name", "encoding", "command"),
    [
        ("a.csv", "utf-16", "iconv -f UTF-16 -t UTF-8 {folder}/a.csv > {folder}/utf8-a.csv"),
        ("b.jsonl", "utf-16-le", "iconv -f UTF-16 -t UTF-8 {folder}/b.jsonl"),
        ("c.csv", "latin-1", "iconv -f ENCODING -t UTF-8 {folder}/c.csv"),
        ("d e.json", "gb18030", "iconv -f ENCODING -t UTF-8 '{folder}/d e.json'"),
        ("f.csv.gz", "latin-1", "gunzip -c {folder}/f.csv.gz | iconv -f ENCODING"),
    ],
)
def test_other_encodings_are_refused_with_a_command_that_converts(
    tmp_path, name, encoding, command
):
    content = 'text,"é"\n' if "csv" in name else '[{"text": "é"}]'
    opener = gzip.open if name.endswith(".gz") else open
    with opener(tmp_path / name, "wb") as file:
        file.write(content.encode(encoding))
    with pytest.raises(ValueError, match="expected UTF-8 text in") as refusal:
        read_table(str(tmp_path / name), str(tmp_path / "cache"))
    assert command.format(folder=tmp_path) in str(refusal.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    table = read_table(write(tmp_path / "a.csv", "\ufefftext\nx\n"), str(tmp_path / "cache"))
    assert table.column_names == ["text"]
    assert read_text(write(tmp_path / "a.txt", "\ufeffx\ufeff")) == "x\ufeff"
    with pytest.raises(ValueError, match="empty file"):
        read_text(write(tmp_path / "b.txt", "\ufeff\n"))


@pytest.mark.parametrize(
    "name",
    [
        "a[1].csv",
        "[abc].csv",
        "*.csv",
        "a?.csv",
        "{a,b}.csv",
        "a b.csv",
        "~a.csv",
        "zip::a#b%20.csv",
    ],
)
def test_a_file_name_is_that_name_and_no_pattern(tmp_path, name):
    for other in ("a1.csv", "a.csv", "b.csv"):
        write(tmp_path / other, "text\nother\n")
    path = write(tmp_path / name, "text\nright\n")
    assert read_table(path, str(tmp_path / "cache"))["text"][:] == ["right"]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.csv"
    cache = str(tmp_path / "cache")
    assert read_table(write(path, "text\nold\n"), cache)["text"][:] == ["old"]
    assert read_table(write(path, "text\nnewer\n"), cache)["text"][:] == ["newer"]


ARROW_STRINGS = [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
]


@pytest.mark.parametrize("kind", ARROW_STRINGS, ids=str)
def test_every_arrow_string_is_a_text_and_a_class(kind, monkeypatch):
    texts = pyarrow.array(["x", "y", "x"])
    texts = texts.dictionary_encode() if kind == ARROW_STRINGS[-1] else texts.cast(kind)
    table = Dataset(pyarrow.table({"text": texts, "label": texts, "summary": texts}))
    check_text_column(table, "text", "text_column")
    assert len(select_pairs(table, ("text", "summary"), None)) == 3
    monkeypatch.setattr(classification, "load_splits", lambda data, model: {"train": table})
    training = SimpleNamespace(do_train=True, do_eval=False, do_predict=False)
    examples = load_examples(ClassificationArguments(), ModelArguments(), training)
    assert examples["train"]["label"][:] == ["x", "y", "x"]


def test_classes_may_spell_missing_values_but_must_not_be_missing(tmp_path):
    training = SimpleNamespace(do_train=True, do_eval=False, do_predict=False)
    model = ModelArguments(cache_dir=str(tmp_path / "cache"))

    def classes(*labels: str) -> list[str]:
        rows = "".join(f"some text,{label}\n" for label in labels)
        path = write(tmp_path / f"{len(labels)}.csv", f"text,label\n{rows}")
        data = ClassificationArguments(train_file=path)
        return class_names(load_examples(data, model, training)["train"])

    spellings = ["N/A", "NA", "NULL", "None", "nan", "null"]
    assert classes(*spellings) == spellings
    with pytest.raises(ValueError, match=r"class in every row of 'label', got none in row 2"):
        classes("NA", "")


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


BPE = train_bpe_tokenizer(["The book was written by her. ", "这本书是她写的。"] * 20, 300)
TOKENIZERS = {"byte": byte_tokenizer(), "bpe": BPE}


def given_characters(tokenizer, monkeypatch) -> list[int]:
    """The length of every text that the tokenizer is given from now on."""
    lengths = []
    encode = type(tokenizer).__call__

    def counted(self, text=None, **options):
        texts = options.get("text_target") if text is None else text
        lengths.extend(len(part) for part in ([texts] if isinstance(texts, str) else texts))
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    return lengths


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    parts=st.lists(
        st.sampled_from(
            ["book ", "书", "a" * 700, " " * 700, "<mask>", "\n", "是她写", "<ma", "sk>"]
        )
    ),
    repeated=st.integers(1, 4),
    max_length=st.integers(3, 40),
)
@settings(deadline=None)
def test_beginnings_give_the_ids_of_whole_texts(name, parts, repeated, max_length):
    tokenizer, text = TOKENIZERS[name], "".join(parts) * repeated
    cut = beginnings(tokenizer, [text, ""], max_length)
    expected = tokenizer([text, ""], max_length=max_length, truncation=True)
    assert tokenizer(cut, max_length=max_length, truncation=True) == expected


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("byte", "The book was written. "),
        ("byte", " "),
        ("bpe", "The book was written. "),
        ("bpe", "ACGT"),
        ("bpe", "这本书"),
    ],
)
def test_work_depends_on_the_tokens_that_are_kept_and_not_on_the_document(name, unit, monkeypatch):
    lengths = given_characters(TOKENIZERS[name], monkeypatch)
    work = []
    for size in (100_000, 1_000_000):
        document = unit * (size // len(unit))
        assert len(beginnings(TOKENIZERS[name], [document], 64)[0]) < 40_000
        work.append(sum(lengths))
        lengths.clear()
    assert work[0] == work[1]


def test_the_end_of_a_text_is_kept_where_the_tokenizer_keeps_it():
    tokenizer = byte_tokenizer()
    tokenizer.truncation_side = "left"
    text = "x" * 10_000 + "end"
    assert beginnings(tokenizer, [text], 4) == [text]


def test_summaries_and_classes_are_encoded_from_beginnings(monkeypatch):
    tokenizer = byte_tokenizer()
    lengths = given_characters(tokenizer, monkeypatch)
    text = "a long text " * 20_000
    rows = {"train": Dataset.from_dict({"document": [text], "summary": [text]})}
    training = TrainingArguments(use_cpu=True)
    data = SummarizationArguments(max_source_length=64, max_target_length=16, source_prefix="sum: ")
    (encoded,) = encode_pairs(rows, ("document", "summary"), tokenizer, data, training)["train"]
    assert encoded["input_ids"] == tokenizer(f"sum: {text[:58]}").input_ids
    assert encoded["labels"] == tokenizer(text[:15]).input_ids
    read = {"train": rows["train"], "test": rows["train"]}
    data = SummarizationArguments(
        max_source_length=64, val_max_source_length=80, max_target_length=16
    )
    for split in (longer := encode_pairs(read, ("document", "summary"), tokenizer, data, training)):
        assert len(longer[split][0]["input_ids"]) == {"train": 64, "test": 80}[split]
    rows = {"train": Dataset.from_dict({"text": [text], "label": ["x"]})}
    data = ClassificationArguments(max_seq_length=64)
    (encoded,) = encode_examples(rows, tokenizer, {"x": 0}, data, training)["train"]
    assert encoded["input_ids"] == tokenizer(text[:63]).input_ids
    assert max(lengths) < 64 * 8 + 1000
