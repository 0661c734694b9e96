"""Values and shapes that a user gives, held against what the model expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reformer_hf.ops.cross_entropy import IGNORE_INDEX

# ---- tensors ----


def check_tensor(x: Any, name: str) -> None:
    """Make sure that what was given is a tensor.

    Raises:
        ValueError: naming the argument, and what came.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"`{name}` must be a tensor, got a {type(x).__name__}")


def check_device(x: Tensor, device: torch.device, name: str) -> None:
    """Make sure that a tensor is where it is needed.

    Raises:
        ValueError: naming the argument, the expected and the actual device.
    """
    if x.device != device:
        raise ValueError(f"`{name}` must be on {device} like the model's tensors, got {x.device}")


def check_shape(x: Tensor, shape: torch.Size, name: str) -> None:
    """Make sure that a tensor given by the user has the shape ``[B, N]`` of the tokens.

    Raises:
        ValueError: naming the argument, the expected and the actual shape.
    """
    check_tensor(x, name)
    if x.shape != shape:
        raise ValueError(f"`{name}` must be [batch, length] = {list(shape)}, got {list(x.shape)}")


def readable(x: Tensor) -> bool:
    """Values cannot be read while a graph is traced or captured, and there are none on meta."""
    return not (
        x.device.type == "meta"
        or torch.compiler.is_compiling()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def _outside(x: Tensor, limit: int, ignored: int | None = None) -> int | None:
    """A value outside ``[0, limit)``, other than the ignored one; ``None`` if there is none."""
    if x.numel() == 0 or not readable(x):
        return None
    if ignored is not None:
        x = x.masked_fill(x == ignored, 0)
    low, high = (int(value) for value in torch.stack(x.aminmax()).tolist())
    if low < 0:
        return low
    return high if high >= limit else None


def as_integers(x: Tensor, name: str) -> Tensor:
    """As int64, from any integer type.

    Raises:
        ValueError: naming the argument, and the type that came.
    """
    check_tensor(x, name)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"`{name}` must hold integers, got dtype {x.dtype}")
    return x.to(torch.int64)


def as_ids(ids: Tensor, limit: int, name: str, limit_name: str = "vocab_size") -> Tensor:
    """Ids of any shape and integer type as int64, all of them in ``[0, limit)``.

    Raises:
        ValueError: naming the argument, the valid range and the offending value.
    """
    ids = as_integers(ids, name)
    wrong = _outside(ids, limit)
    if wrong is not None:
        raise ValueError(f"`{name}` must be in [0, {limit_name}={limit}), got {wrong}")
    return ids


def as_labels(
    labels: Tensor, num_classes: int, device: torch.device, name: str = "labels"
) -> Tensor:
    """Labels of any shape and integer type as int64, all of them -100 or in ``[0, num_classes)``.

    Raises:
        ValueError: naming the argument, the valid range and the offending value.
    """
    labels = on_device(as_integers(labels, name), device, name)
    wrong = _outside(labels, num_classes, ignored=IGNORE_INDEX)
    if wrong is not None:
        raise ValueError(f"`{name}` must be -100 or in [0, {num_classes}), got {wrong}")
    return labels


def on_device(labels: Tensor, device: torch.device, name: str) -> Tensor:
    """Labels, brought to where the predictions are (in a model over several devices, elsewhere).

    Raises:
        ValueError: they are on the meta device, so that there is nothing to bring.
    """
    if labels.device.type == "meta":
        check_device(labels, device, name)
    return labels.to(device)


def as_mask(mask: Tensor, device: torch.device, name: str) -> Tensor:
    """A mask of any shape as bool, true for real tokens.

    Raises:
        ValueError: naming the argument, and a value that is neither 0 nor 1. A mask that is to be
            added to scores (0 and large negative numbers), or one that numbers the texts in a row,
            means something else.
    """
    check_device(mask, device, name)
    if mask.dtype == torch.bool:
        return mask
    real = mask != 0
    if not readable(mask):
        return real
    other = real & (mask != 1)
    wrong = other.any()
    if mask.is_floating_point():
        # Added to scores, this one would hide nothing; read as 1 and 0, it hides everything.
        wrong |= ~real.any()
    if wrong:
        found = mask[other].flatten()[:1].tolist() or ["zeros of a floating-point type alone"]
        raise ValueError(
            f"`{name}` must hold 1 for real tokens and 0 for padding, got {found[0]} (it is "
            "neither added to scores nor does it number the texts of a row)"
        )
    return real


# ---- other arguments ----


def check_num_hashes(num_hashes: Any) -> None:
    """Make sure that a number of hash rounds can be used.

    Raises:
        ValueError: saying what came.
    """
    if not isinstance(num_hashes, int) or isinstance(num_hashes, bool):
        raise ValueError(f"`num_hashes` must be an integer, got {num_hashes!r}")
    if num_hashes < 1:
        raise ValueError(f"`num_hashes` must be at least 1, got {num_hashes}")


def check_flag(value: Any, name: str) -> None:
    """Make sure that an argument is true, false or ``None``.

    Raises:
        ValueError: naming the argument, and what came.
    """
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")


# ---- modules ----


def is_called_plainly(module: nn.Module) -> bool:
    """Calling a module is calling its class's ``forward``: nothing happens before or after.

    Hooks and a replaced ``forward`` bring weights from elsewhere, or look at what is computed.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not any(hooks) and "forward" not in vars(module)
