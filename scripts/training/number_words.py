"""A small translation task that needs no data: numbers in digits to words, English and German.

Every output can be told right from wrong, and numbers that were never trained on are as easy to
make as those that were. German puts the units before the tens, so that word order matters.
"""

import random

from datasets import Dataset

_ENGLISH = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_GERMAN = [
    "null",
    "ein",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
    "dreizehn",
    "vierzehn",
    "fünfzehn",
    "sechzehn",
    "siebzehn",
    "achtzehn",
    "neunzehn",
]
_GERMAN_TENS = [
    "zwanzig",
    "dreißig",
    "vierzig",
    "fünfzig",
    "sechzig",
    "siebzig",
    "achtzig",
    "neunzig",
]
_MOST = 1_000_000
_SIZES = {"train": 4000, "validation": 200, "test": 200}


def english(number: int) -> str:
    """The words of a number below a million.

    Example:
        >>> english(20_413)
        'twenty thousand four hundred thirteen'
    """
    if number >= 1000:
        rest = f" {english(number % 1000)}" if number % 1000 else ""
        return f"{english(number // 1000)} thousand{rest}"
    if number >= 100:
        rest = f" {english(number % 100)}" if number % 100 else ""
        return f"{_ENGLISH[number // 100]} hundred{rest}"
    if number >= 20:
        unit = f"-{_ENGLISH[number % 10]}" if number % 10 else ""
        return _ENGLISH_TENS[number // 10 - 2] + unit
    return _ENGLISH[number]


def german(number: int) -> str:
    """The word of a number below a million.

    Example:
        >>> german(20_413), german(21), german(101)
        ('zwanzigtausendvierhundertdreizehn', 'einundzwanzig', 'einhunderteins')
    """
    word = _german(number)
    return f"{word}s" if number % 100 == 1 else word


def _german(number: int) -> str:
    """The same, as it begins a longer word."""
    if number >= 1000:
        rest = _german(number % 1000) if number % 1000 else ""
        return f"{_german(number // 1000)}tausend{rest}"
    if number >= 100:
        rest = _german(number % 100) if number % 100 else ""
        return f"{_GERMAN[number // 100]}hundert{rest}"
    if number >= 20:
        unit = f"{_GERMAN[number % 10]}und" if number % 10 else ""
        return unit + _GERMAN_TENS[number // 10 - 2]
    return _GERMAN[number]


def number_splits() -> dict[str, Dataset]:
    """Splits with columns "source", "target" and "target_lang"; no number is in two of them."""
    numbers = random.Random(0).sample(range(_MOST), sum(_SIZES.values()))
    found, start = {}, 0
    for split, size in _SIZES.items():
        own = numbers[start : start + size]
        start += size
        found[split] = Dataset.from_list(
            [
                {"source": f"{number:,}", "target": write(number), "target_lang": lang}
                for number in own
                for lang, write in (("en", english), ("de", german))
            ]
        )
    return found
