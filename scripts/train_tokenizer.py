"""Train a byte-level BPE tokenizer on local files, or write one that reads plain bytes.

    python scripts/train_tokenizer.py --files novels.txt.gz meetings.jsonl.gz \\
        --text_columns document summary --vocab_size 8192 --output_dir my-tokenizer

    python scripts/train_tokenizer.py --byte_level --output_dir byte-tokenizer

Files are txt, json, jsonl or csv, also gzipped. The tokenizer is a plain transformers one:
`AutoTokenizer.from_pretrained("my-tokenizer")` opens it on machines without this package.

For every file a line says how many bytes one token stands for, measured on its beginning, where
decoding is also checked to give the text back. The output directory appears complete or not at all.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from reformer_hf.tokenization import byte_tokenizer, train_bpe_tokenizer
from training.arguments import exit_code, option, parse_arguments, require_positive
from training.data import check_text_column
from training.data_files import file_kind, read_table, read_text
from training.models import DEFAULT_VOCAB_SIZE
from training.saving import save_whole

CHECKED_CHARACTERS = 500_000


@dataclass
class TokenizerArguments:
    """What to train on, what to train, and where to put it."""

    output_dir: str = field(metadata={"help": "Directory to write; new, or empty."})
    files: list[str] = field(
        default_factory=list,
        metadata={"help": "Training text: txt, json, jsonl or csv, also with .gz."},
    )
    text_columns: list[str] = field(
        default_factory=lambda: ["text"],
        metadata={"help": "Columns with text in json, jsonl and csv files."},
    )
    vocab_size: int | None = option(f"Number of ids of the tokenizer. Unset: {DEFAULT_VOCAB_SIZE}.")
    min_frequency: int = option("How often a pair must occur to become a token.", 2)
    model_max_length: int | None = option(
        "Longest input of the model in tokens. Unset: no limit, except in the layout enwik8."
    )
    append_eos: bool | None = option(
        "End every encoded text with <eos>, as targets of summarization need it and prompts of a"
        " language model do not. Unset: yes, except in the layout enwik8."
    )
    byte_level: bool = option("Write the tokenizer that reads plain bytes; trains nothing.", False)
    layout: str | None = option("Ids of the byte-level tokenizer: default or enwik8.")

    def __post_init__(self) -> None:
        for name in ("vocab_size", "min_frequency", "model_max_length"):
            require_positive(name, getattr(self, name))
        if not self.byte_level and not self.files:
            raise ValueError("files: expected training text, got none")
        if not self.byte_level and self.layout is not None:
            raise ValueError(f"layout: expected --byte_level next to it, got {self.layout!r} alone")
        if self.byte_level and self.vocab_size is not None:
            raise ValueError(
                "vocab_size: expected none next to --byte_level, whose layout decides it, got"
                f" {self.vocab_size}"
            )


def texts_of(path: str, columns: Sequence[str]) -> Iterator[str]:
    """The text of a txt file, or the texts in `columns` of a json, jsonl or csv file.

    Raises:
        ValueError: the file cannot be read or is empty, a column is missing or is no text.
    """
    if file_kind(path, accepted=("json", "csv", "text")) == "text":
        yield read_text(path)
        return
    table = read_table(path)
    for column in columns:
        check_text_column(table, column, f"text_columns of {path!r}")
    for row in table.select_columns(list(columns)):
        yield from (row[column] for column in columns if row[column])


def build_tokenizer(arguments: TokenizerArguments) -> PreTrainedTokenizerFast:
    """The tokenizer the arguments ask for."""
    if arguments.byte_level:
        return byte_tokenizer(
            arguments.layout or "default",
            model_max_length=arguments.model_max_length,
            append_eos=arguments.append_eos,
        )
    return train_bpe_tokenizer(
        (text for path in arguments.files for text in texts_of(path, arguments.text_columns)),
        arguments.vocab_size or DEFAULT_VOCAB_SIZE,
        min_frequency=arguments.min_frequency,
        model_max_length=arguments.model_max_length,
        append_eos=arguments.append_eos is not False,
    )


def bytes_per_token(tokenizer: PreTrainedTokenizerFast, path: str, columns: Sequence[str]) -> float:
    """Bytes that a token stands for on average, in the first `CHECKED_CHARACTERS` of a file.

    Raises:
        ValueError: there is no text in the file.
        RuntimeError: decoding does not give the text back.
    """
    num_bytes = num_tokens = 0
    left = CHECKED_CHARACTERS
    for text in texts_of(path, columns):
        beginning = text[:left]
        ids = tokenizer(
            beginning, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        if tokenizer.decode(ids) != beginning:
            raise RuntimeError(f"decoding gave another text than the one of {path!r}")
        num_bytes += len(beginning.encode())
        num_tokens += len(ids)
        left -= len(beginning)
        if left == 0:
            break
    if num_tokens == 0:
        raise ValueError(f"text_columns of {path!r}: expected text, got only empty rows")
    return num_bytes / num_tokens


def check_output_dir(path: Path) -> None:
    """Raise ValueError unless `path` is free for a new directory, or an empty one."""
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"output_dir: expected a new or empty directory, got {str(path)!r}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"output_dir: expected a directory, got the file {str(path)!r}")


def train_tokenizer(argv: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Build, check, save and report the tokenizer the arguments ask for.

    Raises:
        ValueError: arguments or files cannot work; nothing is written then.
    """
    (arguments,) = parse_arguments((TokenizerArguments,), argv)
    output_dir = Path(arguments.output_dir).absolute()
    check_output_dir(output_dir)
    tokenizer = build_tokenizer(arguments)
    rates = {
        path: bytes_per_token(tokenizer, path, arguments.text_columns) for path in arguments.files
    }
    save_whole(tokenizer.save_pretrained, output_dir)

    print(f"{len(tokenizer)} ids in {output_dir}")
    for path, rate in rates.items():
        print(f"{rate:6.2f} bytes per token, decoded without loss: {path}")
    return tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the command: 0, or 2 and one line on stderr when the input is at fault."""
    return exit_code(train_tokenizer, argv)


if __name__ == "__main__":
    sys.exit(main())
