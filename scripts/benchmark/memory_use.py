"""Peak memory of a stretch of a process's life: resident set on the CPU, allocator on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
# Writing 5 here sets the peak back to the present (Linux, man 5 proc).
_RESET = Path("/proc/self/clear_refs")

# Parameters of mallopt(3), and the values that glibc arrives at by itself once a large block (32
# MiB) has been freed.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_USUAL = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
_EAGER = {_M_MMAP_THRESHOLD: 1 << 20, _M_TRIM_THRESHOLD: 1 << 20}


def return_freed_memory(eager: bool) -> None:
    """Let the C library hand freed blocks back to the system at once, or as it usually does.

    By itself glibc keeps and splits freed blocks below 32 MiB, and the resident set is up to twice
    what is in use. Eager, the resident set is what is in use, and steps are a little slower.

    Nothing happens where the C library is another one, or where the environment (``MALLOC_..``)
    decides.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for name, size in (_EAGER if eager else _USUAL).items():
            library.mallopt(name, size)
        library.malloc_trim(0)


def resident_bytes(process: int | str = "self") -> int | None:
    """Resident set of a process in bytes; ``None`` where the system does not say."""
    return read_kibibytes(Path(f"/proc/{process}/status"), "VmRSS")


def read_kibibytes(path: Path, name: str) -> int | None:
    """What a file of ``/proc`` says under a name, in bytes; ``None`` where it does not."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


class PeakMemory:
    """Peaks above the use at its creation.

    The resident set is that of the whole process, so it covers what libraries allocate past
    PyTorch; it needs Linux, and elsewhere the peak of the process's whole life is all there is.

    Attributes:
        before: resident bytes at the start.
        cuda_before: allocated bytes of the GPU at the start; ``None`` on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._device = device
        self._exact = _RESET.exists()
        self.cuda_before: int | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.cuda_before = torch.cuda.memory_allocated(device)
        self.restart()
        self.before = resident_bytes() or _lifetime_peak()

    def restart(self) -> None:
        """Forget the peak so far, but not the start."""
        if self._exact:
            _RESET.write_text("5")

    def extra(self) -> int:
        """Resident bytes above the start, at the peak since the last restart."""
        peak = read_kibibytes(_STATUS, "VmHWM") if self._exact else None
        return max(0, (peak or _lifetime_peak()) - self.before)

    def cuda_extra(self) -> int | None:
        """Allocated bytes of the GPU above the start, at the peak; ``None`` on a CPU."""
        if self.cuda_before is None:
            return None
        return int(torch.cuda.max_memory_allocated(self._device)) - self.cuda_before


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
