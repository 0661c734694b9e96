"""One run at a time writes to an output directory."""

import contextlib
import importlib.util
import logging
import os
import socket
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

# The Hub is not sent what begins with an underscore.
LOCK_FILE = "_lock"


class OutputLock:
    """Keeps other processes from `directory` until it is released or the process ends.

    The system holds the lock, so that a killed run leaves none behind, only a file. A directory
    that is not there is made, and removed again if nothing was put into it. A later run of the same
    process takes the lock over.

    Raises:
        ValueError: another process has the lock, or `directory` is a file.
    """

    def __init__(self, directory: Path) -> None:
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"output_dir: expected a directory, got the file {str(directory)!r}")
        self._directory = directory.resolve()
        self._owner = os.getpid()
        self._is_new = not directory.exists()
        self._file: IO[str] | None = None
        before = _held.pop(self._directory, None)
        if before is not None:
            self._file, before._file = before._file, None
            self._is_new = before._is_new
        else:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = self._locked_file()
        _held[self._directory] = self

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        if self._file is None or self._owner != os.getpid():
            return
        _held.pop(self._directory, None)
        (self._directory / LOCK_FILE).unlink(missing_ok=True)
        self._file.close()
        self._file = None
        if self._is_new:
            with contextlib.suppress(OSError):  # not empty: there are results in it
                self._directory.rmdir()

    def _locked_file(self) -> IO[str] | None:
        if importlib.util.find_spec("fcntl") is None:  # Windows
            logger.warning("No locks on this system: keep other runs out of %s", self._directory)
            return None
        import fcntl

        path = self._directory / LOCK_FILE
        while True:
            file = path.open("a+", encoding="utf-8")
            try:
                # Of this process alone: what it forks to load data must not hold it on.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.seek(0)
                owner = file.read().strip() or "another process"
                file.close()
                raise ValueError(
                    "output_dir: expected a directory that no other run writes to, got"
                    f" {str(self._directory)!r}, in use by {owner}"
                ) from error
            except OSError as error:
                file.close()
                path.unlink(missing_ok=True)
                logger.warning("No locks in %s (%s): keep other runs out", self._directory, error)
                return None
            # The last owner may have removed the file between opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    break
            file.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file


# Locks of this process by directory: a run that failed may still be referenced.
_held: dict[Path, OutputLock] = {}
