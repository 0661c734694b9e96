"""Training leaves nothing behind: no tensors, and no memory of the process."""

from __future__ import annotations

import ctypes
import gc
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.models.builders import ALL_DROPOUTS, HEAD_OF

LENGTHS = (64, 90, 128)
STATUS = Path("/proc/self/statm")


def living_tensors() -> Counter[tuple[int, ...]]:
    """Shapes of all tensors that Python can reach."""
    gc.collect()
    # The type, since `isinstance` asks some of torch's own objects, which then warn.
    return Counter(tuple(x.shape) for x in gc.get_objects() if issubclass(type(x), torch.Tensor))


def resident_bytes() -> int:
    """Memory of this process that is in use and present.

    What is free but kept by the C library comes and goes, so it has to give that back first.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return int(STATUS.read_text().split()[1]) * 4096


@pytest.mark.skipif(not STATUS.exists(), reason="reads /proc, which Linux has")
@pytest.mark.parametrize("reversible", [True, False], ids=["reversible", "plain"])
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_200_training_steps_leave_no_growth(name: str, reversible: bool) -> None:
    head = HEAD_OF[name]
    model = head.build(reversible=reversible, **ALL_DROPOUTS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [head.batch(4, length) for length in LENGTHS]
    sizes, shapes = [], []
    for step in range(200):
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 50:
            sizes.append(resident_bytes())
        if step in (50, 199):
            del loss
            shapes.append(living_tensors())
    assert shapes[0] == shapes[1]
    # The least of many readings, since other parts of the process come and go. The allocator still
    # settles by up to 3 MiB; one stream forgotten in each of the 150 steps would be 6.5 MiB.
    growth = min(sizes[-30:]) - min(sizes[:30])
    assert growth < 4 << 20, f"{growth / 2**20:.2f} MiB"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["causal_lm", "seq2seq_lm"])
def test_200_training_steps_leave_no_allocations_on_a_gpu(name: str) -> None:
    head = HEAD_OF[name]
    model = head.build(**ALL_DROPOUTS).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = [
        {key: value.cuda() for key, value in head.batch(4, length).items()} for length in LENGTHS
    ]
    allocated = []
    for step in range(200):
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (50, 199):
            gc.collect()
            allocated.append(torch.cuda.memory_allocated())
    assert allocated[0] == allocated[1]
