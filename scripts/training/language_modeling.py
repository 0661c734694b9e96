"""What is particular to language modelling: blocks of token ids, the model, its continuations."""

import itertools
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from training.arguments import LanguageModelingArguments, ModelArguments
from training.data import check_text_column, first_rows, load_splits, needed_splits
from training.data_files import file_kind, read_text
from training.models import Task, load_tokenizer, new_config
from training.reporting import Sample
from training.scoring import language_modeling_metrics, xz_bits_per_byte
from training.stdlib_corpus import stdlib_sources

LANGUAGE_MODELING = Task(
    "causal language modelling",
    AutoModelForCausalLM,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    "block_size",
    "CAUSAL_LM",
)
# What `load_documents` reads when no data are named.
DEFAULT_DATA = f"Python {platform.python_version()} standard library: source code, split by module"
_FILE_KINDS = ("json", "csv", "text")
# Texts are tokenized in pieces: one call on a whole book would keep all its offsets in memory.
_PIECE_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class Blocks:
    """One split as the model sees it, and the text it comes from."""

    data: Dataset
    documents: Sequence[str]
    tokens_per_byte: float

    def scores(self, loss: float) -> dict[str, float]:
        """What a mean `loss` in nats per token amounts to, and what the xz compressor needs."""
        floor = xz_bits_per_byte(self.documents)
        metrics = language_modeling_metrics(loss, self.tokens_per_byte)
        return metrics | {"xz_bits_per_byte": floor}


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
    elif (splits := load_splits(data, model)) is None:
        documents = stdlib_sources()
    else:
        column = data.text_column or "text"
        for split, table in splits.items():
            check_text_column(table, column, "text_column")
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


def token_stream(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, enough: int | None = None
) -> tuple[np.ndarray, int]:
    """The ids of all documents in one row, an end-of-text token after each document.

    Args:
        documents: texts.
        tokenizer: encodes them, in pieces.
        enough: no further piece is encoded once there are so many ids. Unset: all are.

    Returns:
        The ids `(tokens,)`, int32, and how many bytes of text they stand for.
    """
    found: list[np.ndarray] = []
    num_tokens = num_bytes = 0
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in documents:
        for piece in itertools.chain(pieces(document), [None]):
            if enough is not None and num_tokens >= enough:
                return np.concatenate(found), num_bytes
            if piece is None:
                ids = end
            else:
                ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
                num_bytes += len(piece.encode())
            found.append(np.asarray(ids, dtype=np.int32))
            num_tokens += len(ids)
    return np.concatenate(found), num_bytes


def encode_documents(
    documents: dict[str, list[str]],
    tokenizer: PreTrainedTokenizerBase,
    data: LanguageModelingArguments,
    training: TrainingArguments,
) -> dict[str, Blocks]:
    """The blocks of every split that this run needs.

    Raises:
        ValueError: a split is missing, or shorter than one block.
    """
    blocks = {}
    for split, _, limit in needed_splits(data, training):
        if split not in documents:
            raise ValueError(f"{split}: expected a {split!r} split, got {sorted(documents)}")
        blocks[split] = make_blocks(documents[split], tokenizer, data.block_size, limit, split)
    return blocks


def make_blocks(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    limit: int | None,
    split: str,
) -> Blocks:
    """The documents as blocks of `block_size` tokens, at most `limit`; a shorter rest is left out.

    No more text is encoded than the blocks need.

    Raises:
        ValueError: the text is shorter than one block.
    """
    enough = None if limit is None else limit * block_size
    stream, num_bytes = token_stream(documents, tokenizer, enough)
    count = len(stream) // block_size
    if count == 0:
        raise ValueError(
            f"block_size: expected at most the {len(stream)} tokens of the {split} text, got"
            f" {block_size}"
        )
    count = count if limit is None else min(limit, count)
    rows = stream[: count * block_size].reshape(count, block_size)
    return Blocks(Dataset.from_dict({"input_ids": list(rows)}), documents, len(stream) / num_bytes)


def collate_blocks(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of blocks, each its own label: the model shifts them."""
    input_ids = torch.tensor([row["input_ids"] for row in rows], dtype=torch.long)
    return {"input_ids": input_ids, "labels": input_ids.clone()}


def build_language_model(
    arguments: ModelArguments,
    checkpoint: str | None,
    config: PretrainedConfig | None,
    data: LanguageModelingArguments,
    documents: dict[str, list[str]],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and causal language model: the given ones, or new ones (the tokenizer of bytes).

    Raises:
        ValueError: they cannot be loaded, or the model takes no blocks so long.
    """
    texts = documents.get("train")
    tokenizer = load_tokenizer(
        arguments, checkpoint, texts, train_by_default=False, append_eos=False
    )
    config = config or new_config(arguments, tokenizer, data.block_size)
    model = LANGUAGE_MODELING.load_model(arguments, config, tokenizer, data.block_size)
    return tokenizer, model


@torch.no_grad()
def continuation_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Blocks,
    data: LanguageModelingArguments,
    seed: int,
) -> list[Sample]:
    """Beginnings of the first blocks, how they go on, and how the model goes on."""
    set_seed(seed)
    model.eval()
    prompt_length = min(data.sample_prompt_length, data.block_size - 1)
    new_tokens = min(data.sample_length, data.block_size - prompt_length)
    found = []
    for number, row in enumerate(first_rows(blocks.data, 3)):
        ids = row["input_ids"]
        prompt = torch.tensor([ids[:prompt_length]], device=model.device)
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=True,
            top_p=0.9,
        )
        parts = [
            ("text", tokenizer.decode(ids[:prompt_length])),
            ("reference", tokenizer.decode(ids[prompt_length : prompt_length + new_tokens])),
            ("output", tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)),
        ]
        found.append(Sample(title=f"block {number}", parts=parts))
    return found
