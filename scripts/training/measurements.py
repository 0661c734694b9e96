"""What a run costs: seconds per optimizer step and peak memory."""

import importlib.util
import statistics
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_BYTES_PER_MIB = 1 << 20


class StepTimer(TrainerCallback):
    """Times every optimizer step: forward, backward and update, without evaluation and saving."""

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._started: float | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._started is not None:
            self._durations.append(time.perf_counter() - self._started)
            self._started = None

    @property
    def median_seconds(self) -> float | None:
        """Median over the steps of this run (the first ones are slower); None before any."""
        return statistics.median(self._durations) if self._durations else None


def peak_memory() -> dict[str, float]:
    """Largest memory in MiB so far: of the process, and of its GPU where there is one."""
    memory = {}
    if importlib.util.find_spec("resource") is not None:  # not on Windows
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
        memory["peak_rss_mib"] = round(peak * unit / _BYTES_PER_MIB, 1)
    if torch.cuda.is_available():
        memory["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / _BYTES_PER_MIB, 1)
    return memory
