"""Samples on screen: what went in, what should come out, what did."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH = 96
_INDENT = "    "


@dataclass(frozen=True)
class Sample:
    """Named texts of one example, in reading order."""

    title: str
    parts: Sequence[tuple[str, str]]


def show_samples(samples: Sequence[Sample], characters: int = 400) -> None:
    """Print the samples, each of their texts cut to `characters`."""
    for number, sample in enumerate(samples, start=1):
        print(f"\nSample {number}: {sample.title}")
        for name, text in sample.parts:
            print(f"  {name}:")
            print(_indented(text, characters))


def _indented(text: str, characters: int) -> str:
    text = text.strip()
    shown = text[:characters] + (" ..." if len(text) > characters else "")
    lines = [
        piece
        for line in shown.splitlines()
        for piece in textwrap.wrap(line, _WIDTH, drop_whitespace=False) or [""]
    ]
    return "\n".join(_INDENT + line for line in lines) if lines else f"{_INDENT}(nothing)"
