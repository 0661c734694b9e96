"""Where a result comes from: machine, versions, commit. Nothing that names a host or a folder."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmark.memory_use import read_kibibytes

_ROOT = Path(__file__).resolve().parents[2]
_MEMINFO = Path("/proc/meminfo")
_PACKAGES = ("torch", "transformers", "reformer-pytorch", "triton", "numpy")
# The files that results depend on, not the results themselves.
_SOURCES = ("reformer_hf", "scripts", ":(exclude)scripts/benchmark/results")


def describe_environment(threads: int, device: str) -> dict[str, Any]:
    """Facts for the results file; sizes in bytes."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", *_SOURCES)),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": threads,
            "memory_bytes": read_kibibytes(_MEMINFO, "MemTotal"),
            # These change how fast a CPU gets fresh memory.
            "malloc": {
                name: value
                for name, value in os.environ.items()
                if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE")
            },
            "load_average_at_start": round(os.getloadavg()[0], 2),
            "gpu": _gpu(device),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; ``None`` where the system does not say."""
    return read_kibibytes(_MEMINFO, "MemAvailable")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    family = f" (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
    return facts.get("model name", platform.machine()) + family


def _gpu(device: str) -> dict[str, Any] | None:
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
