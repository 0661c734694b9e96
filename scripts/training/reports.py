"""Reports that need no data: generated, of any length, with a summary that stands in the text.

Most of a report is sentences of words without meaning. At random places among them stand, each
after words that say what it is, a company, a sum and a date, next to others that are not asked for:
the summary names those of the *final* offer. Nothing but reading finds them: the beginning of a
report holds them only by chance, and every report has others.
"""

import random
from collections.abc import Callable, Mapping

from datasets import Dataset

from training import invented

_SIZES = {"train": 1600, "validation": 32, "test": 48}
_SYLLABLES = ("ba", "den", "fo", "gri", "kel", "lu", "mar", "nos", "pi", "ra", "sti", "tum")
_SENTENCE = (6, 14)
# What is asked for, and how it is told: of the final offer, and of an earlier one.
_FACTS: tuple[tuple[Callable[[random.Random], str], str, str], ...] = (
    (invented.company, "The final offer came from {} .", "An earlier offer came from {} ."),
    (invented.amount, "The final price was {} .", "An earlier price was {} ."),
    (invented.date, "It was signed on {} .", "It was discussed on {} ."),
)


def _filler(draw: random.Random) -> str:
    words = ("".join(draw.choices(_SYLLABLES, k=2)) for _ in range(draw.randint(*_SENTENCE)))
    return " ".join([*words, "."]).capitalize()


def report(draw: random.Random, words: int) -> tuple[str, str]:
    """A report of about so many words, and its summary."""
    sentences = [_filler(draw) for _ in range(max(1, words * 2 // (sum(_SENTENCE) + 2)))]
    found = []
    for invent, final, earlier in _FACTS:
        found.append(invent(draw))
        told = [final.format(found[-1]), earlier.format(invent(draw))]
        for sentence in told:
            sentences.insert(draw.randint(0, len(sentences)), sentence)
    return " ".join(sentences), " , ".join(found)


def report_splits(words: int, limits: Mapping[str, int | None] = _SIZES) -> dict[str, Dataset]:
    """Splits with columns "document" and "summary", of reports of about so many words.

    Of the splits in `limits` as many reports are made as it says (None: all). A report depends on
    its split, its place and `words` alone.
    """
    splits = {}
    for split, limit in limits.items():
        count = _SIZES[split] if limit is None else min(limit, _SIZES[split])
        pairs = [report(random.Random(f"{split} {place}"), words) for place in range(count)]
        documents, summaries = zip(*pairs, strict=True)
        splits[split] = Dataset.from_dict({"document": documents, "summary": summaries})
    return splits
