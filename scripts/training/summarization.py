"""What is particular to summarization: pairs of texts, two kinds of models, generation settings."""

import functools
import itertools
import logging
import platform
from collections import ChainMap
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, SummarizationArguments
from training.causal_summarization import Prompt
from training.data import (
    beginnings,
    load_splits,
    needed_splits,
    required_split,
    select_pairs,
    summarization_columns,
    tokenize,
)
from training.models import Task, load_tokenizer
from training.reports import report_splits
from training.scoring import IGNORED_LABEL
from training.sequence_to_sequence import load_writer
from training.stdlib_corpus import stdlib_splits

logger = logging.getLogger(__name__)

SUMMARIZATION = Task(
    "summarization (sequence to sequence, or causal language model)",
    AutoModelForSeq2SeqLM,
    ChainMap(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING),
    "max_source_length",
    "SEQ_2_SEQ_LM",
)
CAUSAL_SUMMARIZATION = replace(SUMMARIZATION, auto_class=AutoModelForCausalLM, adapters="CAUSAL_LM")
# Where a model's configuration says how it is asked for a summary.
HABITS = "summarization"
# What `load_pairs` reads when no data are named.
_DEFAULT_DATA = (
    f"Python {platform.python_version()} standard library: source code of modules and classes,"
    " docstring taken out, and that docstring's first paragraph as the summary"
)


def describe_data(data: SummarizationArguments) -> str:
    """One line that says where documents and summaries come from."""
    if data.report_words is not None:
        return (
            f"generated reports of about {data.report_words:,} words: company, price and date of"
            " the final offer, among others and words without meaning"
        )
    return data.description or _DEFAULT_DATA


def load_pairs(
    data: SummarizationArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "document" and "summary" of the splits that this run needs.

    Without data arguments they are those of the Python standard library, or generated reports.

    Raises:
        ValueError: data cannot be read, or a split or column is missing or empty.
    """
    raw = load_splits(data, model)
    if data.report_words is not None:
        needed = {split: limit for split, _, limit in needed_splits(data, training)}
        raw = report_splits(data.report_words, needed)
    elif raw is None:
        logger.info("No data given: summarizing the Python standard library")
        raw = stdlib_splits()
    pairs = {}
    for split, argument, limit in needed_splits(data, training):
        found = required_split(raw, split, argument)
        pairs[split] = select_pairs(found, summarization_columns(data, found), limit)
    return pairs


def keep_habits(model: PreTrainedModel, data: SummarizationArguments) -> None:
    """Store in the configuration how the model is asked, for `summarize.py`."""
    names = ["source_prefix"]
    if is_causal(model.config):
        names += ["prompt_template", "chat_prompt"]
    habits = {name: getattr(data, name) for name in names}
    setattr(model.config, HABITS, {**habits, "max_source_length": data.longest_input})


def is_causal(config: PretrainedConfig | None) -> bool:
    """Whether a model is a causal language model, and no encoder-decoder."""
    return config is not None and (
        type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
        and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    )


def encode_prompts(
    pairs: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data: SummarizationArguments,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Prompts with their summaries behind them, for a causal model; labels are the summaries.

    Raises:
        ValueError: the prompt does not fit the model or the length, or a summary has no end.
    """
    prompt = Prompt.from_template(tokenizer, data.prompt_template, chat=data.chat_prompt)
    for split in pairs:
        prompt.room(data.source_length(split))
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("tokenizer_name: expected a tokenizer with an eos_token, got one without")

    def encode(
        rows: dict[str, list[Any]], source_length: int, target_length: int
    ) -> dict[str, Any]:
        room = prompt.room(source_length)
        documents = [data.source_prefix + document for document in rows["document"]]
        # One token more than there is room for shows which documents are cut.
        cut = {"truncation": True, "add_special_tokens": False}
        texts = beginnings(tokenizer, documents, room + 1)
        inputs = tokenizer(texts, max_length=room + 1, **cut)["input_ids"]
        summaries = tokenizer(rows["summary"], max_length=target_length - 1, **cut)["input_ids"]
        found: dict[str, list[Any]] = {"input_ids": [], "labels": []}
        for document, summary in zip(inputs, summaries, strict=True):
            asked = prompt.around(document, source_length)
            found["input_ids"].append([*asked, *summary, end])
            found["labels"].append([*[IGNORED_LABEL] * len(asked), *summary, end])
        return found

    found = {}
    for split, texts in pairs.items():
        encode_split = functools.partial(
            encode,
            source_length=data.source_length(split),
            target_length=data.target_length(split),
        )
        found[split] = tokenize(texts, encode_split, data, training)
    return found


def build_summarizer(
    arguments: ModelArguments,
    checkpoint: str | None,
    config: PretrainedConfig | None,
    data: SummarizationArguments,
    pairs: dict[str, Dataset],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model: the given ones, or new ones, ready for the lengths.

    Raises:
        ValueError: they cannot be loaded, or the model takes no inputs or targets so long.
    """
    texts = None
    if "train" in pairs:
        texts = itertools.chain(pairs["train"]["document"], pairs["train"]["summary"])
    tokenizer = load_tokenizer(arguments, checkpoint, texts)
    causal = is_causal(config)
    if causal and config is not None:
        length = data.longest_source + data.longest_target
        model = CAUSAL_SUMMARIZATION.load_model(arguments, config, tokenizer, length)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        _set_causal_generation_defaults(model, data, tokenizer)
    else:
        model = load_writer(SUMMARIZATION, arguments, config, data, tokenizer)
    keep_habits(model, data)
    return tokenizer, model


def _set_causal_generation_defaults(
    model: PreTrainedModel, data: SummarizationArguments, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Store in the model how it is to generate, and where its summaries end."""
    generation = model.generation_config
    generation.max_length = None
    generation.max_new_tokens = data.longest_output
    generation.num_beams = data.num_beams
    generation.do_sample = False
    # What only sampling uses; transformers complains of it.
    generation.temperature = generation.top_p = generation.top_k = None
    generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    if data.forced_bos_token is not None:
        raise ValueError(
            "forced_bos_token: expected none with a causal language model, got"
            f" {data.forced_bos_token!r}"
        )
