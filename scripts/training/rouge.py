"""ROUGE for any script, and what a token is in a language.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004. The counting is rouge-score's;
this module decides what a token is: a lower-cased word with its accents and vowel signs, or, in
scripts that put no spaces between words, a character with its own. Texts are compared in Unicode's
composed form (NFC), so that it does not matter how an accent is stored.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import regex
from rouge_score import rouge_scorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

ROUGE_NAMES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}

# Languages without spaces between words, and the scripts whose letters give them away. Extensions
# (scx) include what several scripts share, such as the sign that lengthens a vowel of Japanese.
_UNSPACED_SCRIPTS = {
    "zh": r"\p{scx=Han}",
    "ja": r"\p{scx=Hiragana}\p{scx=Katakana}",
    "th": r"\p{scx=Thai}",
    "lo": r"\p{scx=Lao}",
    "km": r"\p{scx=Khmer}",
    "my": r"\p{scx=Myanmar}",
    "bo": r"\p{scx=Tibetan}",
}
# Chinese uses next to no kana; Japanese prose is kana by half, and never without.
_KANA_OF_JAPANESE = 0.1

_LETTER = regex.compile(r"\p{L}")
_LETTERS_OF = {
    lang: regex.compile(rf"(?V1)[[{script}]&&\p{{L}}]")
    for lang, script in _UNSPACED_SCRIPTS.items()
}


def _words(of: str) -> str:
    """Runs of characters of the class `of` with their marks.

    U+200C and U+200D shape the letters they stand between and part no words (Persian, Hindi).
    """
    return rf"{of}(?:{of}|\p{{M}}|[\u200c\u200d]+(?=[\p{{L}}\p{{M}}\p{{N}}]))*"


_UNSPACED = rf"[[{''.join(_UNSPACED_SCRIPTS.values())}]&&\p{{L}}]"
_WORD = regex.compile("(?V1)" + _words(r"[\p{L}\p{N}]"))
_CHARACTER_OR_WORD = regex.compile(
    rf"(?V1){_UNSPACED}\p{{M}}*|" + _words(rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}]")
)


def _letters(texts: Iterable[str], characters: int) -> tuple[int, Counter[str]]:
    """Letters in the first `characters`: how many, and how many of each of `_UNSPACED_SCRIPTS`."""
    total, unspaced = 0, Counter[str]()
    for text in texts:
        text = text[:characters]
        total += len(_LETTER.findall(text))
        for lang, letter in _LETTERS_OF.items():
            unspaced[lang] += len(letter.findall(text))
        characters -= len(text)
        if characters == 0:
            break
    return total, unspaced


def resolve_language(lang: str | None, texts: Iterable[str]) -> str | None:
    """`lang` if the user named one, else that of texts most of whose letters need no spaces.

    "zh", "ja", "th", "lo", "km", "my" or "bo", by the script; None for texts made of words.
    """
    if lang is not None:
        return lang
    total, unspaced = _letters(texts, 20_000)
    together = unspaced.total()
    if together <= total / 2:
        return None
    if unspaced["ja"] > _KANA_OF_JAPANESE * (unspaced["ja"] + unspaced["zh"]):
        unspaced["ja"] = together
    return max(unspaced, key=unspaced.__getitem__)


def counts_characters(lang: str | None) -> bool:
    """Whether lengths in `lang` ("zh", "zh-CN", "th", ...) are counted in characters, not words."""
    return lang is not None and regex.split("[-_]", lang.lower())[0] in _UNSPACED_SCRIPTS


class PatternTokenizer(Tokenizer):
    """Every match of a pattern in the composed, lower-cased text is a token; no more is kept."""

    def __init__(self, pattern: regex.Pattern[str]) -> None:
        self._pattern = pattern

    def tokenize(self, text: str) -> list[str]:
        return self._pattern.findall(_composed(text).lower())

    def leading(self, text: str, count: int) -> str:
        """The beginning of `text` up to and including its token number `count`."""
        end = 0
        for number, match in enumerate(self._pattern.finditer(text), start=1):
            if number > count:
                break
            end = match.end()
        return text[:end]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def tokenizer_for(lang: str | None) -> PatternTokenizer:
    """The tokens that ROUGE counts in language `lang`.

    Words of any script: on plain English text the same as rouge-score's own tokenizer, which
    would drop accented letters and everything that is not Latin. Letters of Chinese, Japanese,
    Thai, Lao, Khmer, Burmese and Tibetan are a token each, with the marks on them; Latin words and
    numbers in between stay whole. Where `lang` is a language with spaces, a foreign name in such a
    script counts as one word.
    """
    return PatternTokenizer(
        _CHARACTER_OR_WORD if lang is None or counts_characters(lang) else _WORD
    )


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
                "predictions, references: one text each; lang: decides what a token is, such as"
                " 'zh'; use_stemmer: compare English word stems."
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
        each = rouge_of_each(predictions, references, lang=lang, use_stemmer=use_stemmer)
        return {name: sum(scores) / max(len(scores), 1) for name, scores in each.items()}


def rouge_of_each(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    lang: str | None = None,
    use_stemmer: bool = False,
) -> dict[str, list[float]]:
    """ROUGE F1 in percent of each of `predictions`, keyed by `ROUGE_NAMES`."""
    tokenizer: Tokenizer = DefaultTokenizer(True) if use_stemmer else tokenizer_for(lang)
    scorer = rouge_scorer.RougeScorer(list(ROUGE_NAMES), tokenizer=tokenizer)
    found: dict[str, list[float]] = {name: [] for name in ROUGE_NAMES}
    for prediction, reference in zip(predictions, references, strict=True):
        scores = scorer.score(target=_composed(reference), prediction=_composed(prediction))
        for name, score in scores.items():
            found[name].append(100 * score.fmeasure)
    return found


def compute_rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    lang: str | None = None,
    use_stemmer: bool = False,
) -> dict[str, float]:
    """Mean ROUGE F1 in percent of `predictions` against `references`, keyed by `ROUGE_NAMES`.

    Raises:
        ValueError: the lists are empty or of different lengths, or stemming is asked for a
            language that is counted in characters.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(
            "predictions: expected as many as references and at least one, got"
            f" {len(predictions)} predictions and {len(references)} references"
        )
    if use_stemmer and counts_characters(lang):
        raise ValueError(f"use_stemmer: expected False for language {lang!r}, got {use_stemmer}")
    return Rouge().compute(
        predictions=list(predictions),
        references=list(references),
        lang=lang,
        use_stemmer=use_stemmer,
    )
