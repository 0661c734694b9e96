"""What is particular to translation: pairs of texts, languages and their tags."""

import itertools
import logging

from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, TranslationArguments, require_one_of
from training.data import (
    check_text_column,
    first_rows,
    load_splits,
    needed_splits,
    required_split,
)
from training.models import Task, load_tokenizer
from training.number_words import number_splits
from training.sequence_to_sequence import load_writer

logger = logging.getLogger(__name__)

TRANSLATION = Task(
    "translation (sequence to sequence)",
    AutoModelForSeq2SeqLM,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "max_source_length",
)
# What `load_translations` reads when no data are named.
DEFAULT_DATA = "numbers below a million in digits, and in English and German words"
_LANG_COLUMN = "target_lang"


def tag(lang: str) -> str:
    """What stands before a source to say which language is asked for (arXiv:1611.04558)."""
    return f"<2{lang}>"


def load_translations(
    data: TranslationArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "source", "target", "lang" and "text" of the splits that this run needs.

    "text" is what the model reads: the source, behind the tag of its target's language where data
    have a column of languages. "lang" is empty where they have none.

    Raises:
        ValueError: data cannot be read, or a split, column or language is missing or empty.
    """
    raw = load_splits(data, model)
    if raw is None:
        logger.info("No data given: writing numbers in words, English and German")
        raw = number_splits()
    return {
        split: _select(required_split(raw, split, argument), data, limit)
        for split, argument, limit in needed_splits(data, training)
    }


def _select(table: Dataset, data: TranslationArguments, limit: int | None) -> Dataset:
    columns = {
        "source": data.source_column or "source",
        "target": data.target_column or "target",
    }
    for name, column in columns.items():
        check_text_column(table, column, f"{name}_column")
    lang = data.target_lang_column
    if lang is None and _LANG_COLUMN in table.column_names:
        lang = _LANG_COLUMN
    if lang is not None:
        check_text_column(table, lang, "target_lang_column")
        columns["lang"] = lang
    elif data.target_langs is not None:
        raise ValueError(
            f"target_langs: expected a column of languages next to it, got {table.column_names}"
        )
    pairs = table.select_columns(list(columns.values()))
    pairs = pairs.rename_columns({column: name for name, column in columns.items()})
    if lang is None:
        pairs = pairs.add_column("lang", [""] * len(pairs))
    chosen = None
    if data.target_langs is not None:
        chosen = {name.strip() for name in data.target_langs.split(",")}
        for name in sorted(chosen):
            require_one_of("target_langs", name, sorted(set(pairs["lang"])))
    complete = pairs.filter(
        lambda row: (
            bool(row["source"] and row["target"]) and (chosen is None or row["lang"] in chosen)
        ),
        desc="Leaving out empty texts",
    )
    if len(complete) == 0:
        raise ValueError(
            f"source_column, target_column: expected rows with both, got none of {len(pairs)}"
        )
    texts = [
        f"{tag(row['lang'])} {row['source']}" if row["lang"] else row["source"] for row in complete
    ]
    return first_rows(complete.add_column("text", texts), limit)


def build_translator(
    arguments: ModelArguments,
    checkpoint: str | None,
    config: PretrainedConfig | None,
    data: TranslationArguments,
    pairs: dict[str, Dataset],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model: the given ones, or new ones, ready for the lengths.

    Raises:
        ValueError: they cannot be loaded, or the model takes no inputs or targets so long.
    """
    texts = None
    if "train" in pairs:
        texts = itertools.chain(pairs["train"]["text"], pairs["train"]["target"])
    tokenizer = load_tokenizer(arguments, checkpoint, texts)
    return tokenizer, load_writer(TRANSLATION, arguments, config, data, tokenizer)
