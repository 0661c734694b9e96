"""ROUGE for any script, and what a token is in a language.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. The counting is rouge-score's;
this module decides what a token is: a lower-cased word, or, in Chinese, a character.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

ROUGE_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}

# CJK ideographs: extension A, the main block, the compatibility block, extensions B and later.
_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHS}]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W_]+")
_CHARACTER_OR_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")


def is_chinese(texts: Iterable[str], *, threshold: float = 0.5, characters: int = 20_000) -> bool:
    """Whether more than `threshold` of the letters in the first `characters` are Chinese.

    Chinese puts no spaces between words, so what needs words (ROUGE, lengths) counts its
    characters. Interspersed Latin names and numbers are common and do not change the answer.
    """
    letters = han = seen = 0
    for text in texts:
        text = text[: characters - seen]
        seen += len(text)
        letters += len(_LETTER.findall(text))
        han += len(_IDEOGRAPH.findall(text))
        if seen >= characters:
            break
    return letters > 0 and han / letters > threshold


def resolve_language(lang: str | None, texts: Iterable[str]) -> str | None:
    """`lang` if the user named one, else "zh" for texts that are Chinese, else None."""
    if lang is not None:
        return lang
    return "zh" if is_chinese(texts) else None


def counts_characters(lang: str | None) -> bool:
    """Whether lengths in `lang` are counted in characters ("zh", "zh-CN", ...), not in words."""
    return lang is not None and lang.lower().replace("_", "-").split("-")[0] == "zh"


class PatternTokenizer(Tokenizer):
    """Every match of a pattern in the lower-cased text is a token; all else is dropped."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def tokenize(self, text: str) -> list[str]:
        return self._pattern.findall(text.lower())

    def leading(self, text: str, count: int) -> str:
        """The beginning of `text` up to and including its token number `count`."""
        end = 0
        for number, match in enumerate(self._pattern.finditer(text), start=1):
            if number > count:
                break
            end = match.end()
        return text[:end]


def tokenizer_for(lang: str | None) -> PatternTokenizer:
    """The tokens that ROUGE counts in language `lang`.

    Words of any script: on plain English text the same as rouge-score's own tokenizer, which
    would drop accented letters and everything that is not Latin. In Chinese ("zh", "zh-CN", ...)
    one token per ideograph; Latin words and numbers in between stay whole.
    """
    return PatternTokenizer(_CHARACTER_OR_WORD if counts_characters(lang) else _WORD)


class Rouge(evaluate.Metric):
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in percent.

    Example:
        >>> rouge = Rouge()
        >>> scores = rouge.compute(predictions=["the cat sat"], references=["the cat ran"])
        >>> round(scores["rouge1"], 1), round(scores["rouge2"], 1)
        (66.7, 50.0)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2 and ROUGE-L: n-gram and subsequence overlap, mean F1.",
            citation="Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description=(
                "predictions, references: one text each; lang: 'zh' counts characters;"
                " use_stemmer: compare English word stems."
            ),
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str],
        lang: str | None = None,
        use_stemmer: bool = False,
    ) -> dict[str, float]:
        tokenizer: Tokenizer = DefaultTokenizer(True) if use_stemmer else tokenizer_for(lang)
        scorer = rouge_scorer.RougeScorer(list(ROUGE_NAMES), tokenizer=tokenizer)
        totals = dict.fromkeys(ROUGE_NAMES, 0.0)
        for prediction, reference in zip(predictions, references, strict=True):
            for name, score in scorer.score(target=reference, prediction=prediction).items():
                totals[name] += score.fmeasure
        return {name: 100 * total / max(len(predictions), 1) for name, total in totals.items()}


def compute_rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    lang: str | None = None,
    use_stemmer: bool = False,
) -> dict[str, float]:
    """Mean ROUGE F1 in percent of `predictions` against `references`, keyed by `ROUGE_NAMES`.

    Raises:
        ValueError: the lists are empty or of different lengths, or stemming is asked for Chinese.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            "predictions: expected as many as references and at least one, got"
            f" {len(predictions)} predictions and {len(references)} references"
        )
    if use_stemmer and counts_characters(lang):
        raise ValueError(f"use_stemmer: expected False for Chinese, got {use_stemmer}")
    return Rouge().compute(
        predictions=list(predictions),
        references=list(references),
        lang=lang,
        use_stemmer=use_stemmer,
    )
