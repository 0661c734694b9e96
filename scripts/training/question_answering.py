"""What is particular to question answering: documents in overlapping pieces, answers in them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    AutoModelForQuestionAnswering,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from training.arguments import ModelArguments, QuestionAnsweringArguments
from training.contracts import question_splits
from training.data import (
    check_text_column,
    first_rows,
    load_splits,
    needed_splits,
    required_split,
    tokenize,
)
from training.models import Task, load_tokenizer, new_config, require_offsets
from training.reporting import MetricRow, Sample
from training.scoring import rows_of_metrics

QUESTION_ANSWERING = Task(
    "extractive question answering",
    AutoModelForQuestionAnswering,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "max_seq_length",
    "QUESTION_ANS",
)
# What `load_questions` reads when no data are named.
DEFAULT_DATA = "questions about generated contracts: who sells, who buys, how much, where and when"
# Starts and ends that are tried of every piece, as in the scripts of SQuAD.
_BEST = 20
_HAN = re.compile(r"[\u3400-\u9fff]")


def load_questions(
    data: QuestionAnsweringArguments, model: ModelArguments, training: TrainingArguments
) -> dict[str, Dataset]:
    """Columns "question", "context", "answers" (texts) and "starts" of the needed splits.

    A question without an answer in its context has no texts.

    Raises:
        ValueError: data cannot be read, or a split or column is missing, empty or unsuitable.
    """
    raw = load_splits(data, model)
    if raw is None:
        raw = question_splits()
    return {
        split: _select(first_rows(required_split(raw, split, argument), limit), data)
        for split, argument, limit in needed_splits(data, training)
    }


def _select(table: Dataset, data: QuestionAnsweringArguments) -> Dataset:
    names = {
        "question": data.question_column_name or "question",
        "context": data.context_column_name or "context",
    }
    for name, column in names.items():
        check_text_column(table, column, f"{name}_column_name")
    answers = data.answer_column_name or "answers"
    if answers not in table.column_names:
        raise ValueError(
            f"answer_column_name: expected one of {table.column_names}, got {answers!r}"
        )

    def read(row: dict[str, Any], number: int) -> dict[str, Any]:
        found, context = row[answers], row[names["context"]]
        wrong = ValueError(
            f'answer_column_name: expected {{"text": [..], "answer_start": [..]}} that stands in'
            f" the context in row {number + 1}, got {found!r}"
        )
        if not isinstance(found, dict) or {"text", "answer_start"} - found.keys():
            raise wrong
        texts, starts = list(found["text"]), list(found["answer_start"])
        if len(texts) != len(starts):
            raise wrong
        if any(context[at : at + len(x)] != x for x, at in zip(texts, starts, strict=True)):
            raise wrong
        if not texts and not data.version_2_with_negative:
            raise ValueError(
                "version_2_with_negative: expected true for questions without an answer, as in row"
                f" {number + 1}, got false"
            )
        return {
            "question": row[names["question"]].strip(),
            "context": context,
            "answers": texts,
            "starts": starts,
        }

    return table.map(
        read, with_indices=True, remove_columns=table.column_names, desc="Reading questions"
    )


def build_reader(
    arguments: ModelArguments,
    checkpoint: str | None,
    data: QuestionAnsweringArguments,
    questions: dict[str, Dataset],
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model: the given ones, or new ones, ready for the length.

    Raises:
        ValueError: they cannot be loaded, the tokenizer does not say where its tokens stand, or the
            model takes no texts so long.
    """
    texts = None
    if "train" in questions:
        rows = questions["train"]
        texts = (text for row in rows for text in (row["question"], row["context"]))
    config = QUESTION_ANSWERING.given_config(arguments, checkpoint)
    tokenizer = load_tokenizer(arguments, checkpoint, texts)
    require_offsets(tokenizer)
    config = config or new_config(arguments, tokenizer, data.max_seq_length)
    model = QUESTION_ANSWERING.load_model(arguments, config, tokenizer, data.max_seq_length)
    return tokenizer, model


def encode_questions(
    questions: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data: QuestionAnsweringArguments,
    training: TrainingArguments,
) -> dict[str, Dataset]:
    """Question and piece of the context as the inputs, positions of the answer as the labels.

    Pieces overlap by `doc_stride` tokens. In a piece without the answer both positions are 0, as
    for a question without one. Two columns stay for reading answers off: "example", the row, and
    "offsets", where the tokens of the context stand in it (-1 for all others).

    Raises:
        ValueError: a question that leaves no room for its context.
    """

    def encode(rows: dict[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
        longest = max(len(ids) for ids in tokenizer(rows["question"])["input_ids"])
        if longest + data.doc_stride + 2 >= data.max_seq_length:
            raise ValueError(
                f"max_seq_length: expected more than a question of {longest} tokens and doc_stride="
                f"{data.doc_stride}, got {data.max_seq_length}"
            )
        found = tokenizer(
            rows["question"],
            rows["context"],
            max_length=data.max_seq_length,
            truncation="only_second",
            stride=data.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        pieces: dict[str, list[Any]] = {
            "input_ids": found["input_ids"],
            "attention_mask": found["attention_mask"],
            "start_positions": [],
            "end_positions": [],
            "example": [],
            "offsets": [],
        }
        for piece, own in enumerate(found["overflow_to_sample_mapping"]):
            offsets = [
                list(span) if part == 1 else [-1, -1]
                for span, part in zip(
                    found["offset_mapping"][piece], found.sequence_ids(piece), strict=True
                )
            ]
            start, end = 0, 0
            if rows["answers"][own]:
                first = rows["starts"][own][0]
                start, end = _positions(offsets, first, first + len(rows["answers"][own][0]))
            pieces["start_positions"].append(start)
            pieces["end_positions"].append(end)
            pieces["example"].append(numbers[own])
            pieces["offsets"].append(offsets)
        return pieces

    found = {}
    for split, rows in questions.items():
        numbered = rows.add_column("number", list(range(len(rows))))
        found[split] = tokenize(
            numbered, lambda batch: encode(batch, batch["number"]), data, training
        )
    return found


def _positions(offsets: Sequence[Sequence[int]], first: int, stop: int) -> tuple[int, int]:
    """Tokens at which characters `first .. stop` begin and end; zeros if not all are there."""
    inside = [
        at for at, (start, end) in enumerate(offsets) if start >= 0 and start < stop and end > first
    ]
    if not inside or offsets[inside[0]][0] > first or offsets[inside[-1]][1] < stop:
        return 0, 0
    return inside[0], inside[-1]


def _answer_tokens(text: str) -> list[str]:
    """Words without case, punctuation and English articles; every character of Chinese is one."""
    kept = "".join(" " if unicodedata.category(x)[0] in "PS" else x for x in text.lower())
    spaced = _HAN.sub(r" \g<0> ", kept)
    return [word for word in spaced.split() if word not in ("a", "an", "the")]


def answer_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of words in percent, the best over the references of each answer.

    A question without references is answered right by an empty answer alone. Source: SQuAD
    (Rajpurkar et al. 2016, arXiv:1606.05250, section 6).
    """
    exact, overlap = [], []
    for answer, known in zip(answers, references, strict=True):
        own = _answer_tokens(answer)
        found = []
        for reference in [_answer_tokens(text) for text in known] or [[]]:
            common = (Counter(own) & Counter(reference)).total()
            total = len(own) + len(reference)
            found.append((float(own == reference), 2 * common / total if total else 1.0))
        exact.append(max(x for x, _ in found))
        overlap.append(max(x for _, x in found))
    return {"exact_match": 100 * float(np.mean(exact)), "f1": 100 * float(np.mean(overlap))}


@dataclass(frozen=True)
class Answer:
    """The best span of a piece: its score, and the text."""

    score: float
    text: str


class AnswerScorer:
    """Reads answers off the scores of starts and ends, and computes exact match and F1.

    Args:
        questions: the split.
        pieces: the same, encoded.
        constant: what the baseline answers to every question.
        data: longest answer, and whether there may be none.
    """

    def __init__(
        self,
        questions: Dataset,
        pieces: Dataset,
        constant: str,
        data: QuestionAnsweringArguments,
    ) -> None:
        self._questions, self._pieces, self._data = questions, pieces, data
        references = list(questions["answers"])
        constants = answer_scores([constant] * len(references), references)
        self._constant = {f"constant_{name}": score for name, score in constants.items()}
        self._answers: list[str] = []

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Exact match and F1, in percent, of the model and of the best constant answer."""
        starts, ends = prediction.predictions[:2]
        if len(starts) != len(self._pieces):
            raise ValueError(f"expected {len(self._pieces)} pieces, got {len(starts)}")
        best: dict[int, Answer] = {}
        nothing: dict[int, float] = {}
        for start, end, piece in zip(starts, ends, self._pieces, strict=True):
            row = piece["example"]
            nothing[row] = min(nothing.get(row, np.inf), float(start[0] + end[0]))
            found = self._best_span(start, end, piece["offsets"], self._questions[row]["context"])
            if found is not None and (row not in best or found.score > best[row].score):
                best[row] = found
        self._answers = []
        for row in range(len(self._questions)):
            answer = best.get(row)
            none = self._data.version_2_with_negative and (
                answer is None or nothing[row] > answer.score
            )
            self._answers.append("" if none or answer is None else answer.text)
        scores = answer_scores(self._answers, list(self._questions["answers"]))
        return {name: round(x, 4) for name, x in (scores | self._constant).items()}

    def _best_span(
        self, start: np.ndarray, end: np.ndarray, offsets: Sequence[Sequence[int]], context: str
    ) -> Answer | None:
        """The span of the context with the highest sum of both scores."""
        spans = np.asarray(offsets)
        known = np.flatnonzero(spans[:, 0] >= 0)
        if not len(known):
            return None
        begins, stops = (
            known[np.argsort(-scores[known], kind="stable")[:_BEST]] for scores in (start, end)
        )
        found = [
            (float(start[i] + end[j]), int(i), int(j))
            for i in begins
            for j in stops
            if 0 <= j - i < self._data.max_answer_length
        ]
        if not found:
            return None
        score, i, j = max(found)
        return Answer(score, context[spans[i, 0] : spans[j, 1]])

    @staticmethod
    def rows(metrics: dict[str, float], prefix: str) -> list[MetricRow]:
        """Exact match and F1 of model and baseline, from metrics with a `prefix`."""
        names = {"exact_match": "exact match", "f1": "F1"}
        return rows_of_metrics(metrics, prefix, names, {"constant": "most frequent answer"})

    def samples(self, count: int = 3) -> list[Sample]:
        """The first `count` questions with the answers of the last evaluation."""
        found = []
        for number, (row, answer) in enumerate(
            zip(first_rows(self._questions, count), self._answers, strict=False)
        ):
            parts = [
                (f"context of {len(row['context']):,} characters", row["context"]),
                ("question", row["question"]),
                ("reference", row["answers"][0] if row["answers"] else "(none)"),
                ("output", answer),
            ]
            found.append(Sample(title=f"example {number}", parts=parts))
        return found


def most_frequent_answer(questions: Dataset) -> str:
    """The answer that is right most often."""
    counts = Counter(answers[0] for answers in questions["answers"] if answers)
    return counts.most_common(1)[0][0] if counts else ""
