"""What small studies compute on, and how their results name it."""

import platform

import torch


def default_device() -> str:
    """The first CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_device() -> str:
    """Name of the GPU, or kind and threads of the CPU."""
    if default_device() == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"
