"""What all encoder-decoders share: encoded pairs, lengths, generation settings, the trainer."""

import functools
from typing import Any

from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, SequenceToSequenceArguments
from training.data import beginnings, tokenize
from training.models import Task, new_config
from training.reporting import CardSeq2SeqTrainer
from training.scoring import IGNORED_LABEL


def encode_pairs(
    pairs: dict[str, Dataset],
    columns: tuple[str, str],
    tokenizer: PreTrainedTokenizerBase,
    data: SequenceToSequenceArguments,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Sources as the inputs and targets as the labels of an encoder-decoder.

    Args:
        pairs: by split.
        columns: of the sources and of the targets.
        tokenizer: of the model.
        data: lengths and the prefix of the sources.
        training: decides which process tokenizes.
    """
    source, target = columns

    def encode(
        rows: dict[str, list[Any]], source_length: int, target_length: int
    ) -> dict[str, Any]:
        sources = [data.source_prefix + text for text in rows[source]]
        encoded = tokenizer(
            beginnings(tokenizer, sources, source_length),
            max_length=source_length,
            padding="max_length" if data.pad_to_max_length else False,
            truncation=True,
        )
        targets = beginnings(tokenizer, rows[target], target_length)
        labels = tokenizer(text_target=targets, max_length=target_length, truncation=True)
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": labels["input_ids"],
        }

    found = {}
    for split, texts in pairs.items():
        encode_split = functools.partial(
            encode,
            source_length=data.source_length(split),
            target_length=data.target_length(split),
        )
        found[split] = tokenize(texts, encode_split, data, training)
    return found


def load_writer(
    task: Task,
    arguments: ModelArguments,
    config: PretrainedConfig | None,
    data: SequenceToSequenceArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    """The given encoder-decoder, or a new one, ready for the lengths and for generation.

    Raises:
        ValueError: it cannot be loaded, or takes no inputs or targets so long.
    """
    config = config or new_config(
        arguments, tokenizer, data.longest_source, target_length=data.longest_target
    )
    model = task.load_model(arguments, config, tokenizer, data.longest_source)
    limit = getattr(model.config, "max_target_positions", None)
    if limit is not None and data.longest_target > limit:
        raise ValueError(
            f"max_target_length: expected at most {limit}, the model's max_target_positions,"
            f" got {data.longest_target}"
        )
    _set_generation_defaults(model, data, tokenizer)
    return model


def _set_generation_defaults(
    model: PreTrainedModel, data: SequenceToSequenceArguments, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Store in the model how it is to generate: whoever loads it gets the same outputs."""
    generation = model.generation_config
    if generation.decoder_start_token_id is None:
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:
            raise ValueError(
                "decoder_start_token_id: expected a token id in the model's configuration, got None"
            )
        generation.decoder_start_token_id = start
    # The start token counts as generated, and is no part of the target.
    generation.max_length = data.longest_output + 1
    generation.num_beams = data.num_beams
    generation.no_repeat_ngram_size = data.no_repeat_ngram_size
    if data.forced_bos_token is not None:
        token_id = tokenizer.convert_tokens_to_ids(data.forced_bos_token)
        if token_id in (None, tokenizer.unk_token_id):
            raise ValueError(
                "forced_bos_token: expected a token of the vocabulary, got"
                f" {data.forced_bos_token!r}"
            )
        generation.forced_bos_token_id = token_id


def writing_trainer(parts: dict[str, Any], data: SequenceToSequenceArguments) -> CardSeq2SeqTrainer:
    """What trains an encoder-decoder on sources and targets.

    Args:
        parts: arguments of the trainer but for what collates.
        data: whether padding counts.
    """
    tokenizer = parts["processing_class"]
    pad = IGNORED_LABEL if data.ignore_pad_token_for_loss else tokenizer.pad_token_id
    collate = DataCollatorForSeq2Seq(tokenizer, model=parts["model"], label_pad_token_id=pad)
    return CardSeq2SeqTrainer(**parts, data_collator=collate)
