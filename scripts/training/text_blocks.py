"""Text for language modelling: documents in, blocks of token ids of one length out."""

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from training.arguments import LanguageModelingArguments, ModelArguments
from training.data import check_column, check_text, load_splits
from training.data_files import file_kind, read_text
from training.stdlib_corpus import stdlib_sources

_FILE_KINDS = ("json", "csv", "text")
# Texts are tokenized in pieces: one call on a whole book would keep all its offsets in memory.
_PIECE_CHARACTERS = 1 << 16
_COMPRESSED_BYTES = 8 << 20


@dataclass(frozen=True)
class Blocks:
    """One split as the model sees it, and how many bytes of text one token stands for."""

    data: Dataset
    tokens_per_byte: float


def load_documents(data: LanguageModelingArguments, model: ModelArguments) -> dict[str, list[str]]:
    """The texts of every split; without a data argument, the Python standard library.

    A validation split is cut off the end of the training text where none is given.

    Raises:
        ValueError: data cannot be read or hold no text.
    """
    documents: dict[str, list[str]] = {}
    text_files = {
        split: file
        for split, file in data.files.items()
        if file_kind(file, accepted=_FILE_KINDS) == "text"
    }
    if text_files and text_files != data.files:
        raise ValueError(
            "train_file, validation_file, test_file: expected files of one kind, got"
            f" {sorted(data.files.values())}"
        )
    if text_files:
        documents = {split: [read_text(file)] for split, file in text_files.items()}
    else:
        splits = load_splits(data, model)
        if splits is None:
            documents = stdlib_sources()
        else:
            column = data.text_column or "text"
            for split, table in splits.items():
                check_column(table, column, "text_column")
                check_text(table, column, "text_column")
                documents[split] = [text for text in table[column] if text]
    for split, texts in documents.items():
        if not any(texts):
            raise ValueError(f"{split}: expected text, got none")
    if "validation" not in documents and "train" in documents:
        documents["train"], documents["validation"] = hold_out_end(
            documents["train"], data.validation_split_percentage
        )
    return documents


def hold_out_end(documents: Sequence[str], percentage: int) -> tuple[list[str], list[str]]:
    """All but the last `percentage` of the characters, and those."""
    kept = sum(map(len, documents)) * (100 - percentage) // 100
    train, validation = [], []
    for document in documents:
        train.append(document[: max(kept, 0)])
        validation.append(document[max(kept, 0) :])
        kept -= len(document)
    return [text for text in train if text], [text for text in validation if text]


def pieces(text: str, characters: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """`text` in pieces of at most `characters`, cut after a line end where there is one."""
    start = 0
    while start < len(text):
        end = min(start + characters, len(text))
        if end < len(text):
            line_end = text.rfind("\n", start, end)
            end = line_end + 1 if line_end >= 0 else end
        yield text[start:end]
        start = end


def token_stream(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The ids of all documents in one row, an end-of-text token after each document."""
    found: list[np.ndarray] = []
    for document in documents:
        for piece in pieces(document):
            ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            found.append(np.asarray(ids, dtype=np.int32))
        if tokenizer.eos_token_id is not None:
            found.append(np.asarray([tokenizer.eos_token_id], dtype=np.int32))
    return np.concatenate(found)


def make_blocks(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    limit: int | None,
    split: str,
) -> Blocks:
    """The documents as blocks of `block_size` tokens, at most `limit`; a shorter rest is left out.

    Raises:
        ValueError: the text is shorter than one block.
    """
    stream = token_stream(documents, tokenizer)
    count = len(stream) // block_size
    if count == 0:
        raise ValueError(
            f"block_size: expected at most the {len(stream)} tokens of the {split} text, got"
            f" {block_size}"
        )
    size = sum(len(document.encode()) for document in documents)
    count = count if limit is None else min(limit, count)
    rows = stream[: count * block_size].reshape(count, block_size)
    return Blocks(Dataset.from_dict({"input_ids": list(rows)}), len(stream) / size)


def collate_blocks(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of blocks, each its own label: the model shifts them."""
    input_ids = torch.tensor([row["input_ids"] for row in rows], dtype=torch.long)
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def language_modeling_metrics(loss: float, tokens_per_byte: float) -> dict[str, float]:
    """Perplexity per token, and bits per byte, which compares across tokenizers.

    bits per byte = loss / ln 2 * tokens / bytes (Gao et al., "The Pile", 2020, section 3.1).
    """
    # exp overflows for the loss of a diverged model; infinity says the same.
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {"perplexity": perplexity, "bits_per_byte": loss / math.log(2) * tokens_per_byte}


def xz_bits_per_byte(documents: Sequence[str]) -> float:
    """What the xz compressor needs for (the first 8 MiB of) the text: a floor to beat."""
    text = "".join(documents).encode()[:_COMPRESSED_BYTES]
    return 8 * len(lzma.compress(text)) / len(text)
