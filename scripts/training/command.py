"""The command of a run as its model card shows it: nothing secret, no folders of this machine."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_SECRETS = ("token", "hub_token")
_WIDTH = 96


def shown_command(argv: Sequence[str] | None) -> str:
    """The command line in lines of shell; empty where another program gave the arguments.

    Args:
        argv: arguments of the run; None: those of the process.
    """
    if argv is not None:
        return ""
    parts = ["python", f"scripts/{Path(sys.argv[0]).name}"]
    words = iter(sys.argv[1:])
    groups: list[str] = [" ".join(parts)]
    for word in words:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            given = name.removeprefix("--").replace("-", "_")
            # The parser takes beginnings of names too, where they are those of one option alone.
            secret = bool(given) and any(known.startswith(given) for known in _SECRETS)
            if secret and not equals:
                next(words, None)
            elif not secret:
                groups.append(f"{name}={shlex.quote(_place(value))}" if equals else name)
        else:
            groups[-1] += f" {shlex.quote(_place(word))}"
    lines = [groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) + 3 > _WIDTH:
            lines.append("   ")
        lines[-1] += f" {group}"
    return " \\\n".join(lines)


def _place(value: str) -> str:
    """A value without the folders of this machine: a file or directory of it by its name alone."""
    if not value or "\n" in value:
        return value
    path = Path(value)
    elsewhere = path.is_absolute() or path.parts[:1] in {("..",), ("~",)}
    return path.name if elsewhere or (len(path.parts) > 1 and path.exists()) else value
