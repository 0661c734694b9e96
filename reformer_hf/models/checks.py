"""Values and shapes that a user gives, held against what the model expects."""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.cross_entropy import IGNORE_INDEX


def _outside(x: Tensor, limit: int, ignored: int | None = None) -> int | None:
    """A value outside ``[0, limit)``, other than the ignored one; ``None`` if there is none.

    Values cannot be read while a graph is traced or captured, and there are none on meta.
    """
    unreadable = (
        x.device.type == "meta"
        or torch.compiler.is_compiling()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )
    if x.numel() == 0 or unreadable:
        return None
    if ignored is not None:
        x = x.masked_fill(x == ignored, 0)
    low, high = (int(value) for value in torch.stack(x.aminmax()).tolist())
    if low < 0:
        return low
    return high if high >= limit else None


def check_shape(x: Tensor, shape: torch.Size, name: str) -> None:
    """Make sure that a tensor given by the user has the shape ``[B, N]`` of the tokens.

    Raises:
        ValueError: naming the argument, the expected and the actual shape.
    """
    if x.shape != shape:
        raise ValueError(f"`{name}` must be [batch, length] = {list(shape)}, got {list(x.shape)}")


def check_ids(ids: Tensor, limit: int, name: str, limit_name: str = "vocab_size") -> None:
    """Make sure that all ids, of any shape, are integers in ``[0, limit)``.

    Raises:
        ValueError: naming the argument, the valid range and the offending value.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"`{name}` must hold integers, got dtype {ids.dtype}")
    wrong = _outside(ids, limit)
    if wrong is not None:
        raise ValueError(f"`{name}` must be in [0, {limit_name}={limit}), got {wrong}")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Make sure that all labels, of any shape, are -100 or integers in ``[0, num_classes)``.

    Raises:
        ValueError: naming the valid range and the offending value.
    """
    if labels.is_floating_point():
        raise ValueError(f"`labels` must hold integers, got dtype {labels.dtype}")
    wrong = _outside(labels, num_classes, ignored=IGNORE_INDEX)
    if wrong is not None:
        raise ValueError(f"`labels` must be -100 or in [0, {num_classes}), got {wrong}")
