"""Saving whole or not at all: a directory gets its name when everything in it is on the disk."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def save_whole(save: Callable[[Path], object], path: Path) -> None:
    """`save` into a neighbouring directory and rename it: `path` is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
        complete = Path(temporary) / path.name
        save(complete)
        flush(complete)
        if path.exists():
            path.rmdir()  # empty; Windows does not rename onto a directory
        complete.rename(path)


def replace_directory(complete: Path, path: Path) -> None:
    """Rename `complete` to `path` once its content is on the disk; what was there is deleted."""
    flush(complete)
    replaced = complete.with_name(f"{complete.name}-replaced")
    if path.exists():
        path.rename(replaced)
    complete.rename(path)
    _flush_entry(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def flush(directory: Path) -> None:
    """Wait until everything in `directory` is on the disk, where a rename may come before data."""
    for path in [*directory.rglob("*"), directory]:
        _flush_entry(path)


def _flush_entry(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no directories
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
