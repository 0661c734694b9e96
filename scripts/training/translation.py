"""What is particular to translation: pairs of texts, languages and their tags, BLEU and chrF."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import sacrebleu
from datasets import Dataset
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoModelForSeq2SeqLM,
    EvalPrediction,
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
from training.reporting import MetricRow, Sample
from training.scoring import OutputReader, rows_of_metrics
from training.sequence_to_sequence import load_writer

logger = logging.getLogger(__name__)

TRANSLATION = Task(
    "translation (sequence to sequence)",
    AutoModelForSeq2SeqLM,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "max_source_length",
    "SEQ_2_SEQ_LM",
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


class TranslationScorer:
    """Computes BLEU and chrF of one split for a trainer, with the baseline of copying the source.

    Both are of the whole split in each language (sacreBLEU, Post 2018), and averaged over the
    languages. BLEU counts characters in Chinese and Japanese.

    Args:
        tokenizer: decodes the generated ids.
        pairs: the split, with columns "source", "target" and "lang".
        labels: the label ids of the same rows, as the trainer sees them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        labels: Iterable[Sequence[int]],
    ) -> None:
        self._reader = OutputReader(tokenizer, labels)
        self._pairs = pairs
        self._generated: dict[int, str] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scores of the model and of copying; with several languages also chrF of each."""
        rows = self._reader.rows(prediction.label_ids)
        generated = self._reader.texts(prediction.predictions)
        self._generated = dict(sorted(zip(rows, generated, strict=True)))
        found: dict[str, list[float]] = {}
        by_lang: dict[str, list[int]] = {}
        for row in self._generated:
            by_lang.setdefault(self._pairs[row]["lang"], []).append(row)
        metrics: dict[str, float] = {}
        for lang, own in sorted(by_lang.items()):
            references = [self._pairs[row]["target"] for row in own]
            outputs = {
                "": [self._generated[row] for row in own],
                "copy_": [self._pairs[row]["source"] for row in own],
            }
            for prefix, texts in outputs.items():
                for name, score in translation_scores(texts, references, lang).items():
                    found.setdefault(prefix + name, []).append(score)
            if len(by_lang) > 1:
                metrics[f"chrf_{lang}"] = found["chrf"][-1]
                metrics[f"copy_chrf_{lang}"] = found["copy_chrf"][-1]
        metrics |= {name: float(np.mean(scores)) for name, scores in found.items()}
        metrics["exact_match"] = float(
            np.mean([text == self._pairs[row]["target"] for row, text in self._generated.items()])
        )
        metrics["gen_len"] = self._reader.mean_length(prediction.predictions)
        return {name: round(value, 4) for name, value in metrics.items()}

    @classmethod
    def rows(cls, metrics: Mapping[str, float], prefix: str) -> list[MetricRow]:
        """BLEU and chrF of the model and of copying, from metrics with a trainer's `prefix`."""
        names = {"bleu": "BLEU", "chrf": "chrF"}
        return rows_of_metrics(metrics, prefix, names, {"copy": "copied source"})

    def records(self) -> list[dict[str, str]]:
        """Source, language, reference and output of every example of the last evaluation."""
        return [
            {
                "source": self._pairs[row]["source"],
                "lang": self._pairs[row]["lang"],
                "reference": self._pairs[row]["target"],
                "generated": text,
            }
            for row, text in self._generated.items()
        ]

    def samples(self, count: int = 3) -> list[Sample]:
        """The first `count` examples: source, reference and output."""
        return [
            Sample(
                title=f"example {number}" + (f", to {record['lang']}" if record["lang"] else ""),
                parts=[
                    ("source", record["source"]),
                    ("reference", record["reference"]),
                    ("output", record["generated"]),
                ],
            )
            for number, record in enumerate(self.records()[:count])
        ]


def translation_scores(
    texts: Sequence[str], references: Sequence[str], lang: str = ""
) -> dict[str, float]:
    """Corpus BLEU and chrF2 in percent.

    Args:
        texts: the outputs.
        references: one of each.
        lang: of the references; Chinese and Japanese are compared by characters.
    """
    by_character = lang.replace("-", "_").split("_")[0].lower() in ("zh", "ja")
    tokenize = "char" if by_character else "13a"
    bleu = sacrebleu.corpus_bleu(list(texts), [list(references)], tokenize=tokenize)
    chrf = sacrebleu.corpus_chrf(list(texts), [list(references)])
    return {"bleu": bleu.score, "chrf": chrf.score}
