"""Scores, each next to a baseline that costs nothing.

- Summaries: ROUGE, next to the lead of the document.
- Classes: accuracy and macro-F1, next to the most frequent class.
- Language models: bits per byte, next to the xz compressor.
"""

import lzma
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from training.reporting import MetricRow, Sample
from training.rouge import (
    ROUGE_NAMES,
    compute_rouge,
    counts_characters,
    resolve_language,
    tokenizer_for,
)

IGNORED_LABEL = -100

_COMPRESSED_BYTES = 8 << 20


@dataclass(frozen=True)
class LeadBaseline:
    """The lead baseline: the beginning of the document, presented as its summary.

    A summarizer that does not beat it has learned nothing worth having, and for news or meetings
    it is not easy to beat. Its length decides its score, so that length must not depend on the
    model: it is the mean length of the reference summaries (of the training split, where there is
    one, because a baseline may not look at the references it is scored on). Cut to the length of
    the model's own outputs it would be weak whenever the model stops early, and flatter the model.

    Attributes:
        length: in words (in Chinese: characters).
        lang: language of the documents.
    """

    length: int
    lang: str | None = None

    @classmethod
    def for_references(cls, summaries: Sequence[str], lang: str | None = None) -> "LeadBaseline":
        """Leads of the mean length of `summaries`, at least 1; `lang` None: detected.

        Raises:
            ValueError: there are no summaries.
        """
        if not summaries:
            raise ValueError("summaries: expected at least one, got none")
        lang = resolve_language(lang, summaries)
        tokenizer = tokenizer_for(lang)
        lengths = [len(tokenizer.tokenize(summary)) for summary in summaries]
        return cls(max(1, round(sum(lengths) / len(lengths))), lang)

    @property
    def unit(self) -> str:
        """What lengths are counted in, for tables and cards."""
        return "characters" if counts_characters(self.lang) else "words"

    def summaries(self, documents: Sequence[str]) -> list[str]:
        """The first `length` words (in Chinese: characters) of every document."""
        tokenizer = tokenizer_for(self.lang)
        return [tokenizer.leading(document, self.length) for document in documents]


def _rows(
    metrics: dict[str, float], prefix: str, names: dict[str, str], baseline: str
) -> list[MetricRow]:
    """Those of the metrics `names` that are there, each next to that of the baseline."""
    return [
        MetricRow(
            metric.lower(),
            name,
            metrics[f"{prefix}_{metric}"],
            metrics[f"{prefix}_{baseline}_{metric}"],
        )
        for metric, name in names.items()
        if f"{prefix}_{metric}" in metrics
    ]


class SummaryScorer:
    """Computes the metrics of one split for a trainer.

    Summaries are compared with the whole references, not with the labels: those are cut to the
    target length, and comparing with a cut reference rewards a model for stopping there. The
    reference of a prediction is found by its labels, because evaluation may reorder the examples
    (grouped by length) or repeat some (in distributed runs).

    Args:
        tokenizer: decodes the generated ids.
        pairs: the split, with columns "document" and "summary".
        labels: the label ids of the same rows, as the trainer sees them.
        lead: the baseline; its language is that of the summaries.
        use_stemmer: compare English word stems.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        labels: Iterable[Sequence[int]],
        lead: LeadBaseline,
        *,
        use_stemmer: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._lang = lead.lang
        self._use_stemmer = use_stemmer
        self._rows_of_labels: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(labels):
            self._rows_of_labels.setdefault(self._key(ids), []).append(row)
        scores = self._rouge(lead.summaries(pairs["document"]), list(pairs["summary"]))
        self.lead_scores = {f"lead_{name}": score for name, score in scores.items()}
        self._generated: dict[int, str] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """ROUGE of the model and of the lead baseline, and the mean generated length in tokens."""
        generated = self._decoded(prediction.predictions)
        rows = self._split_rows(prediction.label_ids)
        references = [self._pairs[row]["summary"] for row in rows]
        scores = self._rouge(generated, references)
        self._generated = dict(sorted(zip(rows, generated, strict=True)))
        lengths = [len(self._key(ids)) for ids in np.asarray(prediction.predictions)]
        metrics = scores | self.lead_scores | {"gen_len": float(np.mean(lengths))}
        return {name: round(value, 4) for name, value in metrics.items()}

    @staticmethod
    def rows(metrics: dict[str, float], prefix: str) -> list[MetricRow]:
        """ROUGE of model and lead baseline, from metrics with a trainer's `prefix`."""
        return _rows(metrics, prefix, ROUGE_NAMES, "lead")

    def records(self) -> list[dict[str, str]]:
        """Reference and generated summary of every example of the last evaluation."""
        return [
            {"reference": self._pairs[row]["summary"], "generated": text}
            for row, text in self._generated.items()
        ]

    def samples(self, count: int = 3) -> list[Sample]:
        """The first `count` examples: beginning of the document, reference and output."""
        found = []
        for row in list(self._generated)[:count]:
            pair = self._pairs[row]
            parts = [
                (f"document of {len(pair['document']):,} characters", pair["document"]),
                ("reference", pair["summary"]),
                ("output", self._generated[row]),
            ]
            found.append(Sample(title=f"example {row}", parts=parts))
        return found

    def _rouge(self, summaries: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return compute_rouge(summaries, references, lang=self._lang, use_stemmer=self._use_stemmer)

    def _key(self, ids: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """The ids without padding, which differs between batches."""
        ignored = (IGNORED_LABEL, self._tokenizer.pad_token_id)
        return tuple(int(token) for token in ids if token not in ignored)

    def _split_rows(self, label_ids: Any) -> list[int]:
        """The row of the split that each prediction belongs to."""
        found = []
        seen: Counter[tuple[int, ...]] = Counter()
        for ids in np.asarray(label_ids):
            key = self._key(ids)
            rows = self._rows_of_labels[key]
            # Examples with the same summary come in the order of their rows.
            found.append(rows[seen[key] % len(rows)])
            seen[key] += 1
        return found

    def _decoded(self, predictions: Any) -> list[str]:
        ids = np.asarray(predictions)
        ids = np.where(ids == IGNORED_LABEL, self._tokenizer.pad_token_id, ids)
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


def accuracy(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Share of the examples whose class was predicted."""
    return float(np.mean(predicted == actual))


def macro_f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """F1 of every class that occurs, in the predictions or in truth, averaged.

    F1 = 2 TP / (2 TP + FP + FN). Rare classes count as much as frequent ones.
    """
    scores = []
    for label in np.union1d(predicted, actual):
        hits = np.sum((predicted == label) & (actual == label))
        # TP + FP is what was predicted, TP + FN what was there.
        scores.append(2 * hits / (np.sum(predicted == label) + np.sum(actual == label)))
    return float(np.mean(scores))


class ClassificationScorer:
    """Computes the metrics of one split for a trainer, with the majority baseline.

    Args:
        majority: the class to answer always; the most frequent one in training.
        extra: another metric of the `evaluate` library, or None.
    """

    def __init__(self, majority: int, extra: Any = None) -> None:
        self._majority = majority
        self._extra = extra

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Accuracy and macro-F1 of the model and of the majority class."""
        logits = prediction.predictions
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        labels = np.asarray(prediction.label_ids)
        predicted = logits.argmax(axis=-1)
        constant = np.full_like(labels, self._majority)
        scores = {
            "accuracy": accuracy(predicted, labels),
            "macro_f1": macro_f1(predicted, labels),
            "majority_accuracy": accuracy(constant, labels),
            "majority_macro_f1": macro_f1(constant, labels),
        }
        if self._extra is not None:
            scores |= self._extra.compute(predictions=predicted, references=labels) or {}
        return scores

    @staticmethod
    def rows(metrics: dict[str, float], prefix: str) -> list[MetricRow]:
        """Accuracy and macro-F1 of model and majority class, from metrics with a `prefix`."""
        names = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
        return _rows(metrics, prefix, names, "majority")


def majority_class(labels: Sequence[int]) -> int:
    """The most frequent class; of several the first."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))


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
