"""Which language a text is in, as far as the scripts care: Chinese or anything else."""

import re
from collections.abc import Iterable

# CJK ideographs: extension A, the main block, the compatibility block, extensions B and later.
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN = re.compile(f"[{HAN}]")
_LETTER = re.compile(r"[^\W\d_]")


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
        han += len(_HAN.findall(text))
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


def unit(lang: str | None) -> str:
    """What lengths in `lang` are counted in, for tables and cards."""
    return "characters" if counts_characters(lang) else "words"
