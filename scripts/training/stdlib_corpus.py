"""A long-document summarization corpus that every Python installation already contains.

The source code of a module or class of the standard library, its docstring cut out, is the
document; the docstring's first paragraph is the summary, which is what it is written for (PEP 257).
What follows it are arguments, examples and tables, and whole docstrings differ in length a
hundredfold. A few hundred modules (half of them over 10,000
characters, the longest over 200,000) and about a thousand classes are read from the directory of
the running interpreter, so nothing is downloaded and nothing is copied.

Left out: tests, installed packages, and what would make the task look easier than it is:
docstrings of fewer than four words, codecs that a program generated from one template, and
docstrings that a second module repeats.

A module and its classes always share a split, chosen by a hash of the module's name: the same
modules are held out on every machine, and no class is tested whose module was trained on.
"""

import ast
import hashlib
import itertools
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import Dataset

_MIN_SUMMARY_WORDS = 4
_MIN_DOCUMENT_CHARACTERS = 200
# Of every 20 modules, 16 train, 2 validate and 2 test.
_SPLIT_OF_REMAINDER = ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
_SKIPPED_DIRECTORIES = {
    "__pycache__",
    "dist-packages",
    "idle_test",
    "lib-dynload",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
_GENERATED_CODEC_MARK = "gencodec.py"


@dataclass(frozen=True)
class Example:
    """One document and its summary; `module` decides the split, `kind` is "module" or "class"."""

    name: str
    module: str
    kind: str
    document: str
    summary: str


def split_of(module: str) -> str:
    """The split of a module and its classes: "train", "validation" or "test"."""
    return _SPLIT_OF_REMAINDER[_hash(module) % len(_SPLIT_OF_REMAINDER)]


def _hash(name: str) -> int:
    """A number that depends on nothing but `name`, unlike Python's own `hash`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _modules(root: Path) -> Iterator[tuple[str, str]]:
    """Dotted name and source text of every readable module under `root`, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_DIRECTORIES.intersection(parts[:-1]):
            continue
        if not all(part.isidentifier() for part in parts):  # such as config-3.11-x86_64-linux-gnu
            continue
        try:
            with tokenize.open(path) as file:  # honours the coding cookie
                text = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), text


class _Source:
    """A source text addressed the way `ast` does: by line and by UTF-8 byte in the line."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode()
        self._line_starts = [0]
        for line in self._bytes.split(b"\n"):
            self._line_starts.append(self._line_starts[-1] + len(line) + 1)

    def _offset(self, line: int, column: int) -> int:
        return self._line_starts[line - 1] + column

    def without_docstring(self, node: ast.Module | ast.ClassDef) -> str:
        """The text of `node` without its docstring, and without the lines this leaves blank."""
        statement = node.body[0]
        docstring = statement.value if isinstance(statement, ast.Expr) else statement
        start, end = 0, len(self._bytes)
        if isinstance(node, ast.ClassDef):
            first_line = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            start = self._line_starts[first_line - 1]
            end = self._offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
        last_line = docstring.end_lineno or docstring.lineno
        cut_from = self._offset(docstring.lineno, docstring.col_offset)
        cut_to = self._offset(last_line, docstring.end_col_offset or 0)
        line_start, line_end = self._line_starts[docstring.lineno - 1], self._line_starts[last_line]
        alone = not (self._bytes[line_start:cut_from] + self._bytes[cut_to:line_end]).strip()
        if alone:
            cut_from, cut_to = line_start, line_end
        kept = self._bytes[start:cut_from] + self._bytes[cut_to : max(end, cut_to)]
        return textwrap.dedent(kept.decode()).strip("\n") + "\n"


def examples_of_source(text: str, module: str) -> Iterator[Example]:
    """The examples of one module: the module itself, then its classes, in source order.

    Raises:
        SyntaxError: `text` is not Python of the running version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(text)
    source = _Source(text)
    for node, name in _nodes_with_names(tree, module):
        summary = _first_paragraph(ast.get_docstring(node) or "")
        if len(summary.split()) < _MIN_SUMMARY_WORDS or _GENERATED_CODEC_MARK in summary:
            continue
        document = source.without_docstring(node)
        # A summary that its document repeats word for word would reward copying.
        if len(document) < _MIN_DOCUMENT_CHARACTERS or summary in " ".join(document.split()):
            continue
        kind = "module" if isinstance(node, ast.Module) else "class"
        yield Example(name, module, kind, document, summary)


def _first_paragraph(docstring: str) -> str:
    """The text up to the first empty line, on one line."""
    lines = itertools.takewhile(str.strip, docstring.strip().splitlines())
    return " ".join(line.strip() for line in lines)


def _nodes_with_names(node: ast.AST, name: str) -> Iterator[tuple[ast.Module | ast.ClassDef, str]]:
    """`node` and every class in it, each with its dotted name (functions add no part)."""
    if isinstance(node, ast.Module | ast.ClassDef):
        yield node, name
    for child in ast.iter_child_nodes(node):
        child_name = f"{name}.{child.name}" if isinstance(child, ast.ClassDef) else name
        yield from _nodes_with_names(child, child_name)


def stdlib_examples(root: Path | None = None) -> list[Example]:
    """Every example of the standard library at `root` (default: the running interpreter's).

    Raises:
        ValueError: nothing is found there, as in an installation without source files.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    examples: list[Example] = []
    seen: set[str] = set()
    for module, text in _modules(root):
        try:
            found = list(examples_of_source(text, module))
        except SyntaxError:
            continue  # a template, or code for another version
        for example in found:
            key = " ".join(example.summary.split())
            if key not in seen:
                seen.add(key)
                examples.append(example)
    if not examples:
        raise ValueError(
            f"stdlib root: expected modules with docstrings in {str(root)!r}, got none"
        )
    return examples


def stdlib_sources(root: Path | None = None) -> dict[str, list[str]]:
    """Whole source texts of the modules by split, docstrings included, for language modelling."""
    sources: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for module, text in _modules(root or Path(sysconfig.get_path("stdlib"))):
        if text:
            sources[split_of(module)].append(text)
    return sources


def stdlib_splits(root: Path | None = None) -> dict[str, Dataset]:
    """The corpus as `{"train", "validation", "test"}` data sets with the fields of `Example`.

    The order is scrambled, the same way everywhere, so that the first rows are a fair sample.
    """
    rows: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for example in sorted(stdlib_examples(root), key=lambda example: _hash(example.name)):
        rows[split_of(example.module)].append(asdict(example))
    return {split: Dataset.from_list(found) for split, found in rows.items()}
