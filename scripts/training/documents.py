"""Documents as people have them: txt, md, html, pdf and standard input, as plain text."""

import io
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

STDIN = "-"
# What is no text of a page, and what ends a line in one.
_HIDDEN = {"head", "noscript", "script", "style", "svg", "template"}
_BLOCKS = {
    "address", "article", "blockquote", "br", "dd", "div", "dt", "footer", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre", "section", "table", "td", "th",
    "tr", "ul",
}  # fmt: skip


class _PageText(HTMLParser):
    """Collects the text of a page, a line for every block."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._hidden: list[str] = []
        self._preformatted = 0
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line, or hidden text."""
        if tag in _HIDDEN:
            self._hidden.append(tag)
        elif tag in _BLOCKS:
            self._parts.append("\n")
            self._preformatted += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        """End a line, or hidden text."""
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        elif tag in _BLOCKS:
            self._parts.append("\n")
            self._preformatted = max(0, self._preformatted - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        """Take text that is shown."""
        if not self._hidden:
            # Line ends in the source of a page are blanks on it.
            self._parts.append(data if self._preformatted else re.sub(r"\s+", " ", data))

    @property
    def text(self) -> str:
        """Lines with something in them, blanks in a row made one."""
        lines = (" ".join(line.split()) for line in "".join(self._parts).splitlines())
        return "\n".join(line for line in lines if line)


def _plain(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(
            f"document: expected UTF-8 text in {name!r}, got the byte 0x{byte:02x}"
        ) from error


def _html(data: bytes, name: str) -> str:
    page = _PageText()
    page.feed(_plain(data, name))
    page.close()
    return page.text


def _pdf(data: bytes, name: str) -> str:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError as error:
        raise ValueError(
            f"document: expected the package pypdf to read {name!r} (`pip install pypdf`), got none"
        ) from error
    try:
        pages = [page.extract_text() for page in PdfReader(io.BytesIO(data)).pages]
    except PyPdfError as error:
        raise ValueError(f"document: cannot read {name!r} as pdf: {error}") from error
    return "\n".join(pages)


_READERS: dict[str, Callable[[bytes, str], str]] = {
    ".txt": _plain,
    ".md": _plain,
    ".rst": _plain,
    ".py": _plain,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}


def read_document(path: str) -> str:
    """The text of a file, or of standard input for "-".

    Raises:
        ValueError: there is no such file, its ending is unknown, its bytes are no text of that
            kind, or there is no text in it.
    """
    if path == STDIN:
        text = _plain(sys.stdin.buffer.read(), "standard input")
    else:
        file = Path(path)
        if file.suffix.lower() not in _READERS:
            raise ValueError(
                f"document: expected an ending of {', '.join(_READERS)}, got {str(path)!r}"
            )
        if not file.is_file():
            raise ValueError(f"document: expected a file at {str(path)!r}, got nothing")
        text = _READERS[file.suffix.lower()](file.read_bytes(), str(path))
    if not text.strip():
        raise ValueError(f"document: expected text in {str(path)!r}, got none")
    return text
