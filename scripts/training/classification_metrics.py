"""Accuracy and macro-F1 of a classifier, with the majority baseline next to them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction


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


def majority_class(labels: Sequence[int]) -> int:
    """The most frequent class; of several the first."""
    counts = Counter(labels)
    return min(counts, key=lambda label: (-counts[label], label))
