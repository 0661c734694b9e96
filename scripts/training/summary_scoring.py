"""Scores of generated summaries, with the lead baseline next to them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase

from training.data import IGNORED_LABEL
from training.lead_baseline import lead_summaries
from training.rouge import ROUGE_TYPES, compute_rouge
from training.samples import Sample


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
        lead_length: length of the lead baseline in words (in Chinese: characters).
        lang: language of the summaries.
        use_stemmer: compare English word stems.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Dataset,
        labels: Iterable[Sequence[int]],
        *,
        lead_length: int,
        lang: str | None = None,
        use_stemmer: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._options: dict[str, Any] = {"lang": lang, "use_stemmer": use_stemmer}
        self._rows_of_labels: dict[tuple[int, ...], list[int]] = {}
        for row, ids in enumerate(labels):
            self._rows_of_labels.setdefault(self._key(ids), []).append(row)
        leads = lead_summaries(pairs["document"], lead_length, lang)
        scores = compute_rouge(leads, list(pairs["summary"]), **self._options)
        self.lead_scores = {f"lead_{name}": score for name, score in scores.items()}
        self._generated: dict[int, str] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """ROUGE of the model and of the lead baseline, and the mean generated length in tokens."""
        generated = self._decoded(prediction.predictions)
        rows = self._rows(prediction.label_ids)
        references = [self._pairs[row]["summary"] for row in rows]
        scores = compute_rouge(generated, references, **self._options)
        self._generated = dict(sorted(zip(rows, generated, strict=True)))
        lengths = [len(self._key(ids)) for ids in np.asarray(prediction.predictions)]
        metrics = scores | self.lead_scores | {"gen_len": float(np.mean(lengths))}
        return {name: round(value, 4) for name, value in metrics.items()}

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

    def _key(self, ids: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """The ids without padding, which differs between batches."""
        ignored = (IGNORED_LABEL, self._tokenizer.pad_token_id)
        return tuple(int(token) for token in ids if token not in ignored)

    def _rows(self, label_ids: Any) -> list[int]:
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


def table_rows(metrics: dict[str, float], prefix: str) -> list[tuple[str, list[float]]]:
    """The ROUGE rows of model and lead baseline from metrics with a trainer's `prefix`."""
    return [
        ("model", [metrics[f"{prefix}_{name}"] for name in ROUGE_TYPES]),
        ("lead baseline", [metrics[f"{prefix}_lead_{name}"] for name in ROUGE_TYPES]),
    ]
