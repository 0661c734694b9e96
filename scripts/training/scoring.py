"""Scores, each next to a baseline that costs nothing.

- Summaries: ROUGE and, where it is asked for, BERTScore, next to leads of the document and to the
  best constant output.
- Classes: accuracy and macro-F1, next to the most frequent class.
- Language models: bits per byte, next to the xz compressor.

Scores of translations, answers and entities stand with their tasks.
"""

import lzma
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from training.bert_score import BERTSCORE_NAMES, BertScore
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
# What finding the best constant output may cost: so many summaries, each compared with so many
# references; the few best by words alone are compared in full.
CONSTANT_CANDIDATES = 200
CONSTANT_REFERENCES = 50
_SHORTLIST = 10
# Outputs that differ less often than this, per different reference, ignore the document.
_LEAST_DISTINCT_SHARE = 0.1


@dataclass(frozen=True)
class LeadBaseline:
    """The lead baseline: the beginning of the document, presented as its summary.

    A summarizer that does not beat it has learned nothing worth having, and for news or meetings
    it is not easy to beat. Its length decides its score, so there are two of them. One has the mean
    length of the reference summaries (of the training split, where there is one, because a baseline
    may not look at the references it is scored on): cut to the length of the model's outputs alone
    it would be weak whenever the model stops early, and flatter the model. The other has the mean
    length of the model's own outputs: where F1 favours that length, it favours both.

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
        return cls(1, resolve_language(lang, summaries)).of_length_of(summaries)

    def of_length_of(self, texts: Sequence[str]) -> "LeadBaseline":
        """This baseline with the mean length of `texts`, at least 1."""
        tokenizer = tokenizer_for(self.lang)
        lengths = [len(tokenizer.tokenize(text)) for text in texts]
        return replace(self, length=max(1, round(sum(lengths) / len(lengths))))

    @property
    def unit(self) -> str:
        """What lengths are counted in, for tables and cards."""
        return "characters" if counts_characters(self.lang) else "words"

    def summaries(self, documents: Sequence[str]) -> list[str]:
        """The first `length` words (in Chinese: characters) of every document."""
        tokenizer = tokenizer_for(self.lang)
        return [tokenizer.leading(document, self.length) for document in documents]


def best_constant(
    candidates: Sequence[str],
    references: Sequence[str] | None,
    *,
    lang: str | None = None,
    use_stemmer: bool = False,
) -> int:
    """The candidate that is the best summary to give for every document, by its number.

    It is what a model can score that never looks at a document. At most `CONSTANT_CANDIDATES`
    candidates and `CONSTANT_REFERENCES` references count, evenly spread; the ten with the best
    unigram F1 are compared by the sum of ROUGE-1, ROUGE-2 and ROUGE-L.

    Args:
        candidates: summaries, of the training split where there is one.
        references: the validation summaries; None: the candidates, each without itself.
        lang: language of the texts, see `tokenizer_for`.
        use_stemmer: compare English word stems.

    Raises:
        ValueError: there are no candidates.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one summary, got none")
    tokenizer = tokenizer_for(lang)
    texts = candidates if references is None else references
    rows = _spread(len(texts), CONSTANT_REFERENCES)
    words = {row: Counter(tokenizer.tokenize(texts[row])) for row in rows}

    def others(number: int) -> list[int]:
        found = [row for row in rows if references is not None or row != number]
        return found or rows  # a single summary has no others

    def unigram_f1(number: int) -> float:
        own = Counter(tokenizer.tokenize(candidates[number]))
        scores = [
            2 * (own & words[row]).total() / max(1, own.total() + words[row].total())
            for row in others(number)
        ]
        return float(np.mean(scores))

    def rouge(number: int) -> float:
        known = [texts[row] for row in others(number)]
        constant = [candidates[number]] * len(known)
        return sum(compute_rouge(constant, known, lang=lang, use_stemmer=use_stemmer).values())

    numbers = _spread(len(candidates), CONSTANT_CANDIDATES)
    shortlist = sorted(numbers, key=unigram_f1, reverse=True)[:_SHORTLIST]
    return max(shortlist, key=rouge)


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers below `count`, at even distances."""
    step = max(1.0, count / limit)
    return [int(step * number) for number in range(min(count, limit))]


def rows_of_metrics(
    metrics: Mapping[str, float],
    prefix: str,
    names: Mapping[str, str],
    baselines: Mapping[str, str],
) -> list[MetricRow]:
    """Those of the metrics `names` that are there, each next to the `baselines` that are there."""
    return [
        MetricRow(
            metric.lower(),
            name,
            metrics[f"{prefix}_{metric}"],
            {
                label: metrics[f"{prefix}_{baseline}_{metric}"]
                for baseline, label in baselines.items()
                if f"{prefix}_{baseline}_{metric}" in metrics
            },
        )
        for metric, name in names.items()
        if f"{prefix}_{metric}" in metrics
    ]


class OutputReader:
    """Decodes what was generated, and finds the examples that it belongs to.

    The example of an output is found by its labels, because evaluation may reorder the examples
    (grouped by length) or repeat some (in distributed runs).

    Args:
        tokenizer: decodes the generated ids.
        labels: the label ids of all rows of a split, as the trainer sees them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, labels: Iterable[Sequence[int]]) -> None:
        self._tokenizer = tokenizer
        self._rows: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(labels):
            self._rows.setdefault(self._key(ids), []).append(row)

    def _key(self, ids: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """The ids without padding, which differs between batches."""
        ignored = (IGNORED_LABEL, self._tokenizer.pad_token_id)
        return tuple(int(token) for token in ids if token not in ignored)

    def rows(self, label_ids: Any) -> list[int]:
        """The row of the split that each output belongs to."""
        found = []
        seen: Counter[tuple[int, ...]] = Counter()
        for ids in np.asarray(label_ids):
            key = self._key(ids)
            rows = self._rows[key]
            # Examples with the same labels come in the order of their rows.
            found.append(rows[seen[key] % len(rows)])
            seen[key] += 1
        return found

    def texts(self, predictions: Any) -> list[str]:
        """What was generated."""
        ids = np.asarray(predictions)
        ids = np.where(ids == IGNORED_LABEL, self._tokenizer.pad_token_id, ids)
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def mean_length(self, predictions: Any) -> float:
        """Tokens of an output, on average."""
        return float(np.mean([len(self._key(ids)) for ids in np.asarray(predictions)]))


class SummaryScorer:
    """Computes the metrics of one split for a trainer.

    Summaries are compared with the whole references, not with the labels: those are cut to the
    target length, and comparing with a cut reference rewards a model for stopping there.

    Args:
        tokenizer: decodes the generated ids.
        pairs: the split, with columns "document" and "summary".
        labels: the label ids of the same rows, as the trainer sees them.
        lead: the baseline; its language is that of the summaries.
        constant: the best constant output, see `best_constant`.
        constant_row: the row of `pairs` that `constant` was taken from, which then does not count
            for it; None: it comes from another split.
        use_stemmer: compare English word stems.
        bert_score: another metric, or None.
    """

    BASELINES: ClassVar[Mapping[str, str]] = {
        "lead": "lead baseline",
        "output_length_lead": "lead of output length",
        "constant": "best constant output",
        "untrained": "model before training",
    }

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        labels: Iterable[Sequence[int]],
        lead: LeadBaseline,
        constant: str,
        *,
        constant_row: int | None = None,
        use_stemmer: bool = False,
        bert_score: BertScore | None = None,
    ) -> None:
        self._reader = OutputReader(tokenizer, labels)
        self._pairs = pairs
        self._lead = lead
        self._use_stemmer = use_stemmer
        self._bert_score = bert_score
        references = list(pairs["summary"])
        others = [text for row, text in enumerate(references) if row != constant_row] or references
        self._fixed_scores = {
            **self._scores(lead.summaries(pairs["document"]), references, "lead_"),
            **self._scores([constant] * len(others), others, "constant_"),
        }
        self._distinct_references = len(set(references))
        self._generated: dict[int, str] = {}
        self._untrained: dict[int, str] = {}

    def remember_untrained(self) -> None:
        """From now on the last outputs are those of the model before training."""
        self._untrained = self._generated
        references = [self._pairs[row]["summary"] for row in self._generated]
        scores = self._scores(list(self._generated.values()), references, "untrained_")
        self._fixed_scores |= scores

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scores of the model and of the baselines, how many outputs differ, and their length.

        `gen_len` counts tokens of the model, `output_length` what ROUGE counts.
        """
        generated = self._reader.texts(prediction.predictions)
        rows = self._reader.rows(prediction.label_ids)
        references = [self._pairs[row]["summary"] for row in rows]
        self._generated = dict(sorted(zip(rows, generated, strict=True)))
        lead = self._lead.of_length_of(generated)
        leads = lead.summaries([self._pairs[row]["document"] for row in rows])
        metrics = {
            **self._scores(generated, references),
            **self._fixed_scores,
            **self._scores(leads, references, "output_length_lead_"),
            "distinct_outputs": self._distinct_outputs(),
            "output_length": lead.length,
            "gen_len": self._reader.mean_length(prediction.predictions),
        }
        return {name: round(value, 4) for name, value in metrics.items()}

    @classmethod
    def rows(cls, metrics: Mapping[str, float], prefix: str) -> list[MetricRow]:
        """Scores of the model and of the baselines, from metrics with a trainer's `prefix`."""
        names = {**ROUGE_NAMES, **BERTSCORE_NAMES}
        return rows_of_metrics(metrics, prefix, names, cls.BASELINES)

    @property
    def ignores_the_document(self) -> bool:
        """Whether the outputs of the last evaluation hardly differ.

        That is, one output alone, or less than one for ten different references. A model that
        writes the same of every document can score well, and has learned nothing about documents.
        """
        least = max(2.0, _LEAST_DISTINCT_SHARE * self._distinct_references)
        return self._distinct_references > 1 and 0 < self._distinct_outputs() < least

    @property
    def finding(self) -> str:
        """How many outputs of the last evaluation differ, and what that says, as a sentence."""
        distinct = self._distinct_outputs()
        outputs = "output" if distinct == 1 else "outputs"
        counted = f"{distinct} distinct {outputs} of {len(self._generated)}"
        if not self.ignores_the_document:
            return f"{counted}."
        return (
            f"{counted}: the model ignores the document. Whatever it scores is no win over a"
            " baseline."
        )

    def _distinct_outputs(self) -> int:
        return len(set(self._generated.values()))

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
                *([("before training", self._untrained[row])] if row in self._untrained else []),
                ("output", self._generated[row]),
            ]
            found.append(Sample(title=f"example {row}", parts=parts))
        return found

    def _scores(
        self, summaries: Sequence[str], references: Sequence[str], prefix: str = ""
    ) -> dict[str, float]:
        scores = compute_rouge(
            summaries, references, lang=self._lead.lang, use_stemmer=self._use_stemmer
        )
        if self._bert_score is not None:
            scores |= self._bert_score(summaries, references)
        return {prefix + name: score for name, score in scores.items()}


def summary_scorers(
    pairs: Mapping[str, Dataset],
    encoded: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    lead: LeadBaseline,
    *,
    use_stemmer: bool = False,
    bert_score: BertScore | None = None,
) -> dict[str, SummaryScorer]:
    """What scores each split but "train".

    The constant is a training summary, chosen on the validation split. Without a training split it
    is a summary of the first split there is, where its own document does not count for it; without
    a validation split it is chosen on the other candidates.

    Args:
        pairs: the splits, with columns "document" and "summary".
        encoded: the same rows with their "labels".
        tokenizer: decodes the generated ids.
        lead: the baseline; its language is that of the summaries.
        use_stemmer: compare English word stems.
        bert_score: another metric, or None.
    """
    source = "train" if "train" in pairs else next(iter(pairs))
    candidates = list(pairs[source]["summary"])
    held_out = pairs["validation"] if source != "validation" and "validation" in pairs else None
    row = best_constant(
        candidates,
        None if held_out is None else list(held_out["summary"]),
        lang=lead.lang,
        use_stemmer=use_stemmer,
    )
    return {
        split: SummaryScorer(
            tokenizer,
            texts,
            encoded[split]["labels"],
            lead,
            candidates[row],
            constant_row=row if split == source else None,
            use_stemmer=use_stemmer,
            bert_score=bert_score,
        )
        for split, texts in pairs.items()
        if split != "train"
    }


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
        return rows_of_metrics(metrics, prefix, names, {"majority": "majority class"})


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
