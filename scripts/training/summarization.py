"""What is particular to summarization: pairs of texts, an encoder-decoder, generation settings."""

import itertools
from collections.abc import Iterator

from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, SummarizationArguments
from training.data import (
    load_summarization_splits,
    required_split,
    select_pairs,
    summarization_columns,
)
from training.models import fit_positions, load_config, load_model, token_fields
from training.presets import preset_named, seq2seq_config


def load_pairs(
    data: SummarizationArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "document" and "summary" of the splits that this run needs.

    Raises:
        ValueError: data cannot be read, or a split or column is missing or empty.
    """
    raw = load_summarization_splits(data, model)
    wanted = [
        ("train", "do_train", training.do_train, data.max_train_samples),
        ("validation", "do_eval", training.do_eval, data.max_eval_samples),
        ("test", "do_predict", training.do_predict, data.max_predict_samples),
    ]
    pairs = {}
    for split, argument, needed, limit in wanted:
        if needed:
            found = required_split(raw, split, argument)
            pairs[split] = select_pairs(found, summarization_columns(data, found), limit)
    return pairs


def texts_of(pairs: Dataset) -> Iterator[str]:
    """All documents, then all summaries, one at a time."""
    return itertools.chain(iter(pairs["document"]), iter(pairs["summary"]))


def given_config(arguments: ModelArguments, checkpoint: str | None) -> PretrainedConfig | None:
    """The configuration of the named model or of the checkpoint; None if there is neither.

    Raises:
        ValueError: there is no such model, or it is not a sequence-to-sequence model.
    """
    return load_config(
        arguments,
        checkpoint,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        "summarization (sequence to sequence)",
    )


def build_summarizer(
    arguments: ModelArguments,
    data: SummarizationArguments,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig | None,
) -> PreTrainedModel:
    """The given seq2seq model, or a new Reformer of a preset size, ready for the lengths.

    Raises:
        ValueError: the model cannot take inputs or targets so long.
    """
    if config is None:
        fields = token_fields(tokenizer)
        config = seq2seq_config(
            preset_named(arguments.preset),
            max_source_length=data.max_source_length,
            max_target_length=data.longest_target,
            token_fields=fields | {"decoder_start_token_id": fields["pad_token_id"]},
            overrides=arguments.config_overrides,
        )
    model = load_model(arguments, config, AutoModelForSeq2SeqLM, len(tokenizer))
    fit_positions(
        model, data.max_source_length, "max_source_length", arguments.resize_position_embeddings
    )
    limit = getattr(model.config, "max_target_positions", None)
    if limit is not None and data.longest_target > limit:
        raise ValueError(
            f"max_target_length: expected at most {limit}, the model's max_target_positions, got"
            f" {data.longest_target}"
        )
    _set_generation_defaults(model, data, tokenizer)
    return model


def _set_generation_defaults(
    model: PreTrainedModel, data: SummarizationArguments, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Store in the model how it is to generate: whoever loads it gets the same summaries."""
    generation = model.generation_config
    if generation.decoder_start_token_id is None:
        start = getattr(model.config, "decoder_start_token_id", None)
        if start is None:
            raise ValueError(
                "decoder_start_token_id: expected a token id in the model's configuration, got None"
            )
        generation.decoder_start_token_id = start
    # The start token counts as generated, and is no part of the summary.
    generation.max_length = (data.val_max_target_length or data.max_target_length) + 1
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
