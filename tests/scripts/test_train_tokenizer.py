"""The command writes a complete tokenizer and a report, or says in one line what is wrong."""

import csv
import gzip
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

TEXTS = [
    "A text with words, commas and\nlines.",
    '"Quoted," she said; ' + "long " * 30_000,  # beyond the field limit of Python's csv reader
    "发言人一：这本书是谁写的？",
]

Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls the script with arguments, in a directory of its own, as if it were started there."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    main = importlib.import_module("train_tokenizer").main
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        return int(main(list(arguments)))

    return call


def write_text(path: Path, texts: Sequence[str] = TEXTS) -> None:
    path.write_bytes("\r\n".join(texts).encode())


def write_text_gz(path: Path, texts: Sequence[str] = TEXTS) -> None:
    path.write_bytes(gzip.compress("\n".join(texts).encode()))


def write_csv(path: Path, texts: Sequence[str] = TEXTS) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["number", "text"], *enumerate(texts)])


def write_json_lines(path: Path, texts: Sequence[str] = TEXTS) -> None:
    lines = [json.dumps({"number": i, "text": text}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_json_lines_gz(path: Path, texts: Sequence[str] = TEXTS) -> None:
    write_json_lines(path, texts)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_json(path: Path, texts: Sequence[str] = TEXTS) -> None:
    path.write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")


WRITERS = {
    "a.txt": write_text,
    "b.txt.gz": write_text_gz,
    "c.csv": write_csv,
    "d.jsonl": write_json_lines,
    "e.jsonl.gz": write_json_lines_gz,
    "f.json": write_json,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_trains_a_tokenizer_that_keeps_its_text(
    name: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS[name](Path(name))
    assert command("--files", name, "--vocab_size", "268", "--output_dir", "new/tokenizer") == 0

    tokenizer = AutoTokenizer.from_pretrained("new/tokenizer")
    assert len(tokenizer) == 268
    assert tokenizer.tokenize(" long") == ["Ġlong"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    report = capsys.readouterr().out
    assert report.startswith(f"268 ids in {Path('new/tokenizer').absolute()}\n")
    assert report.endswith(f" bytes per token, decoded without loss: {name}\n")


def test_several_files_and_columns_are_all_trained_on_and_reported(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"document": "alpha " * 9, "summary": "beta " * 9}, {"document": None, "summary": ""}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("b.txt").write_text("gamma " * 9)
    files = ("--files", "a.jsonl", "b.txt", "--text_columns", "document", "summary")
    assert command(*files, "--vocab_size", "285", "--output_dir", "out") == 0
    tokens = AutoTokenizer.from_pretrained("out").tokenize(" alpha beta gamma")
    assert tokens == ["Ġalpha", "Ġbeta", "Ġgamma"]
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_bytes_per_token_are_those_of_the_file(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.txt").write_text("abab" * 100)
    arguments = ("--vocab_size", "264", "--output_dir", "out")  # 263 and one merge: "ab"
    assert command("--files", "a.txt", *arguments) == 0
    assert "  2.00 bytes per token, decoded without loss: a.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [((), [104, 1]), (("--layout", "enwik8"), [99])],
    ids=["default", "enwik8"],
)
def test_byte_level_needs_no_files(
    arguments: tuple[str, ...], ids: list[int], command: Command
) -> None:
    assert command("--byte_level", *arguments, "--output_dir", "out") == 0
    assert AutoTokenizer.from_pretrained("out")("a").input_ids == ids


def test_length_and_eos_are_kept_in_the_saved_tokenizer(command: Command) -> None:
    Path("a.txt").write_text("some text")
    options = ("--model_max_length", "7", "--append_eos", "false", "--vocab_size", "263")
    for source, name in ((("--byte_level",), "bytes"), (("--files", "a.txt", *options[4:]), "bpe")):
        assert command(*source, *options[:4], "--output_dir", name) == 0
        tokenizer = AutoTokenizer.from_pretrained(name)
        assert tokenizer.model_max_length == 7
        assert tokenizer.eos_token_id not in tokenizer("a").input_ids


def test_an_empty_output_directory_is_filled_and_a_full_one_is_left_alone(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert command("--byte_level", "--output_dir", "out") == 0
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert command("--byte_level", "--layout", "enwik8", "--output_dir", "out") == 2
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    assert "output_dir: expected a new or empty directory" in capsys.readouterr().err


def test_an_interrupted_save_leaves_nothing_behind(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_half_way(self: object, directory: Path) -> None:
        directory.mkdir()
        (directory / "tokenizer.json").write_text("{")
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail_half_way)
    assert command("--byte_level", "--output_dir", "out") == 2
    assert capsys.readouterr().err == "error: No space left on device\n"
    assert list(Path().iterdir()) == []


def write_bad_files() -> None:
    Path("empty.txt").touch()
    Path("empty.csv").touch()
    Path("good.txt").write_text("text")
    Path("latin1.txt").write_bytes(b"caf\xe9 " * 9)
    Path("cut.txt.gz").write_bytes(gzip.compress(b"text " * 999)[:-20])
    Path("fake.txt.gz").write_text("no gzip at all")
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text": ')
    Path("surrogate.jsonl").write_text('{"text": "\\ud800"}')
    Path("columns.csv").write_text("title,body\nx,y\n")
    Path("numbers.csv").write_text("text\n1\n2\n")
    Path("no_text.jsonl").write_text('{"text": ""}\n{"text": ""}')
    Path("text.pdf").write_text("text")
    Path("folder.txt").mkdir()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--files missing.txt", "missing.txt"),
        ("--files good.txt folder.txt", "folder.txt"),
        ("--files good.txt empty.txt", "empty.txt"),
        ("--files empty.csv", "empty.csv"),
        ("--files latin1.txt", "latin1.txt"),
        ("--files cut.txt.gz", "cut.txt.gz"),
        ("--files fake.txt.gz", "fake.txt.gz"),
        ("--files broken.jsonl", "broken.jsonl"),
        ("--files surrogate.jsonl", "surrogate.jsonl"),
        ("--files text.pdf", "text.pdf"),
        ("--files columns.csv", "'columns.csv': expected one of ['title', 'body'], got 'text'"),
        ("--files numbers.csv", "'numbers.csv': expected text in column 'text', got int64"),
        ("--files no_text.jsonl", "texts: expected at least one text that is not empty"),
        ("--files good.txt no_text.jsonl", "no_text.jsonl"),
        ("", "files: expected training text, got none"),
        ("--files good.txt --vocab_size 100", "vocab_size: expected an integer of at least 263"),
        ("--files good.txt --min_frequency 0", "min_frequency: expected a positive integer, got 0"),
        ("--files good.txt --layout enwik8", "layout: expected --byte_level next to it"),
        ("--byte_level --layout utf16", "layout: expected one of ['default', 'enwik8']"),
        ("--byte_level --vocab_size 300", "vocab_size: expected none next to --byte_level"),
        ("--byte_level --output_dir good.txt", "output_dir: expected a directory, got the file"),
    ],
)
def test_bad_input_gives_one_line_that_names_it_and_writes_nothing(
    arguments: str, expected: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bad_files()
    before = set(Path().iterdir())
    if "--output_dir" not in arguments:
        arguments += " --output_dir out"
    assert command(*arguments.split()) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert expected in message
    assert set(Path().iterdir()) - {Path("cache")} == before
