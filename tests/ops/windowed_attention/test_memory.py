"""No N x N tensor is formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.windowed_attention import torch_backend


def peak_ratio(backend: str, window: AttentionWindow, make_problem: Any, live_memory: Any) -> float:
    """By what the peak memory of a forward and backward pass grows when the length doubles."""
    found = []
    for length in (256, 512):
        problem = make_problem(length, window, batch=1, heads=1).to(torch.float32)
        with live_memory() as memory:
            problem.solve(backend)
        assert backend == "reference" or memory.largest < length**2  # a quarter of N x N in fp32
        found.append(memory.peak)
    return found[1] / found[0]


@pytest.mark.parametrize("count_duplicates", [True, False], ids=["multiset", "union"])
@pytest.mark.parametrize("pattern", ["window", "chunk"])
def test_memory_grows_linearly_with_the_length(
    pattern, count_duplicates, make_problem, make_window, live_memory, monkeypatch
):
    for constant in ("SCORE_ELEMENTS", "_LINE_ELEMENTS"):  # a small constant part
        monkeypatch.setattr(torch_backend, constant, 1 << 10)
    before = 8 if pattern == "window" else 1
    window = make_window(pattern, before, chunk_length=8, count_duplicates=count_duplicates)
    assert peak_ratio("torch", window, make_problem, live_memory) < 2.2


def test_the_measurement_of_memory_can_tell(make_problem, make_window, live_memory):
    assert peak_ratio("reference", make_window(), make_problem, live_memory) > 3.5
