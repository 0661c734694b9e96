"""Where kernels in Triton can take the place of several PyTorch operations; imports no Triton."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch


@functools.cache
def installed() -> bool:
    """Whether the package triton is there."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU; slow, for tests.

    Triton decides that when a kernel is defined, so the variable must be set before the first call.
    """
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def usable_on(device: torch.device) -> bool:
    """Whether tensors on a device are served by kernels, outside of graphs.

    While a graph is traced, its compiler fuses the PyTorch operations itself.
    """
    return device.type == "cuda" and installed() and not torch.compiler.is_compiling()
