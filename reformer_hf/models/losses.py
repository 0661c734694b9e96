"""Losses of the heads: pure functions, all of which honour ``num_items_in_batch``.

With gradient accumulation a Trainer passes the number of labelled items of *all* accumulated
batches; dividing the sum of losses by it makes the accumulated gradient that of the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reformer_hf.choices import PROBLEM_TYPES
from reformer_hf.configuration_checks import choice
from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.checks import (
    as_integers,
    as_labels,
    check_shape,
    check_tensor,
    is_called_plainly,
    on_device,
    readable,
)
from reformer_hf.ops.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from reformer_hf.ops.precision import widen
from reformer_hf.ops.sequence_group import SequenceGroup, together

NumItems = Tensor | int | float | None


def _divide(total: Tensor, count: Tensor | int, num_items: NumItems) -> Tensor:
    """``total / num_items``, or the mean over ``count``; an empty batch has loss 0.

    Raises:
        ValueError: a number of items that is none.
    """
    items = count if num_items is None else num_items
    if not isinstance(items, Tensor) and not (isinstance(items, int | float) and items >= 0):
        raise ValueError(f"`num_items_in_batch` must be a number of at least 0, got {items!r}")
    if isinstance(items, Tensor):
        return total / items.to(total.device).clamp(min=1)
    return total / max(1, items)


def _over_tokens(
    compute: Callable[[], tuple[Tensor, Tensor]], num_items: NumItems, group: SequenceGroup | None
) -> Tensor:
    """A sum over tokens, divided by their number or by ``num_items``.

    Args:
        compute: the sum over this rank's tokens, and the number of those that are labelled.
        num_items: to divide by instead.
        group: who has the other tokens.
    """
    with together(group):
        total, count = compute()
    if group is not None:
        total, count = group.sum(total), group.sum(count)
    return _divide(total, count, num_items)


def token_loss(
    logits: Tensor,
    labels: Tensor,
    num_items: NumItems = None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """Mean cross-entropy over labels other than -100.

    Args:
        logits: ``[.., V]``.
        labels: ``[..]`` of any integer type.
        num_items: number of labelled items to divide by instead of this batch's own.
        group: who has the other tokens, where sequences are split.

    Raises:
        ValueError: labels that are neither -100 nor in ``[0, V)``, or of another shape.
    """

    def compute() -> tuple[Tensor, Tensor]:
        check_shape(labels, logits.shape[:-1], "labels")
        targets = as_labels(labels, logits.shape[-1], logits.device)
        total = F.cross_entropy(
            widen(logits.flatten(0, -2)),
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return total, (targets != IGNORE_INDEX).sum()

    return _over_tokens(compute, num_items, group)


def _summed_by_calls(hidden: Tensor, head: nn.Module, labels: Tensor, chunk_size: int) -> Tensor:
    """Sum of cross-entropies; the logits of a slice are formed again in the backward pass."""

    def of_slice(part: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(widen(head(part)), target, reduction="sum")

    rows = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    slices = zip(hidden[rows].split(chunk_size), labels[rows].split(chunk_size), strict=True)
    losses = [checkpoint(of_slice, *both, use_reentrant=False) for both in slices]
    return torch.stack(losses).sum()


def _matrix(head: nn.Module) -> nn.Linear | None:
    """The head, if it is a matrix and a bias and nothing else, so that it need not be called."""
    if type(head).forward is not nn.Linear.forward:
        return None
    linear = cast("nn.Linear", head)
    if isinstance(head, FSDPModule):
        # A call of the module would gather its weights, and nothing else.
        head.unshard()
    elif not is_called_plainly(head):
        return None
    # Quantized weights are tensors of their own kind under a module that shows nothing of it.
    return linear if type(linear.weight) in (Tensor, nn.Parameter) else None


def chunked_token_loss(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    num_classes: int,
    chunk_size: int,
    num_items: NumItems = None,
    group: SequenceGroup | None = None,
) -> Tensor:
    """:func:`token_loss` of ``head(hidden)`` without ever forming all logits.

    Args:
        hidden: ``[.., d]``.
        head: the projection to the vocabulary. If it is more than a matrix and a bias (an adapter
            around them, quantized weights, hooks), it is called on every slice, twice in training.
        labels: ``[..]`` of any integer type.
        num_classes: size ``V`` of the vocabulary.
        chunk_size: rows whose logits are formed together.
        num_items: number of labelled items to divide by instead of this batch's own.
        group: who has the other tokens, where sequences are split.

    Raises:
        ValueError: labels that are neither -100 nor in ``[0, V)``, or of another shape.
    """

    def compute() -> tuple[Tensor, Tensor]:
        check_shape(labels, hidden.shape[:-1], "labels")
        targets = as_labels(labels, num_classes, hidden.device).flatten()
        rows = hidden.flatten(0, -2)
        linear = _matrix(head)
        if linear is None:
            total = _summed_by_calls(rows, head, targets, chunk_size)
        else:
            weight, bias = linear.weight, linear.bias
            total = linear_cross_entropy(rows, weight, bias, targets, chunk_size=chunk_size)
        return total, (targets != IGNORE_INDEX).sum()

    return _over_tokens(compute, num_items, group)


def vocabulary_head(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None,
    num_classes: int,
    chunk_size: int,
    num_items: NumItems = None,
    group: SequenceGroup | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss and logits of a projection to the vocabulary.

    Args:
        hidden: ``[B, N, d]``.
        head: the projection, or what somebody put around it.
        labels: ``[B, N]`` of any integer type, or ``None``: no loss.
        num_classes: size ``V`` of the vocabulary.
        chunk_size: if positive and there are labels, the loss is computed in slices of that many
            labelled positions, and there are no logits.
        num_items: number of labelled items to divide by instead of this batch's own.
        group: who has the other tokens, where sequences are split; logits are of this rank's.

    Returns:
        The loss and the logits ``[B, N, V]``, each ``None`` where there is none.
    """
    if labels is None:
        return None, head(hidden)
    if chunk_size > 0:
        loss = chunked_token_loss(hidden, head, labels, num_classes, chunk_size, num_items, group)
        return loss, None
    logits = head(hidden)
    return token_loss(logits, labels, num_items, group), logits


def shift_left(labels: Tensor, group: SequenceGroup | None = None) -> Tensor:
    """Labels ``[B, N]`` (int64) of the *next* token; the last position has none.

    Where sequences are split, the last position of a rank has the first label of the next.
    """
    if group is not None:
        return group.shift(labels, -1, IGNORE_INDEX)
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def problem_type(config: ReformerConfig, labels: Tensor, num_labels: int) -> str:
    """The configured problem type, or the one that labels and their number suggest.

    Nothing is written to the configuration.
    """
    if config.problem_type is not None:
        choice(config, "problem_type", PROBLEM_TYPES)
        return str(config.problem_type)
    if num_labels == 1:
        return "regression"
    if labels.is_floating_point():
        return "multi_label_classification"
    return "single_label_classification"


def sequence_loss(
    config: ReformerConfig, logits: Tensor, labels: Tensor, num_items: NumItems = None
) -> Tensor:
    """Loss of one prediction per sequence.

    Cross-entropy, binary cross-entropy of each label, or mean squared error, depending on
    :func:`problem_type`; the mean over all labels.

    Args:
        config: the model's configuration.
        logits: ``[B, num_labels]``.
        labels: ``[B]`` of any integer type (single label), or ``[B, num_labels]`` numbers. A single
            number for each sequence may stand alone or in a column ``[B, 1]``.
        num_items: number of labels to divide by instead of this batch's own.

    Raises:
        ValueError: labels whose shape, type or values do not fit the problem; a number of labels
            that is no longer that of the head.
    """
    rows, num_labels = logits.shape
    if config.num_labels != num_labels:
        raise ValueError(
            f"`num_labels` must be {num_labels}, as many as the head tells apart, "
            f"got {config.num_labels}"
        )
    check_tensor(labels, "labels")
    labels = on_device(labels, logits.device, "labels")
    kind = problem_type(config, labels, num_labels)
    single = kind == "single_label_classification"
    if labels.shape == (rows,) and (single or num_labels == 1):
        labels = labels.unsqueeze(1)
    if labels.shape != (rows, 1 if single else num_labels):
        wanted = f"[batch] = [{rows}]"
        if not single:
            wanted = f"[batch, num_labels] = {list(logits.shape)} for {kind}"
        raise ValueError(f"`labels` must be {wanted}, got {list(labels.shape)}")
    if single:
        return token_loss(logits, labels.squeeze(1), num_items)
    wide = widen(logits)
    target = labels.to(wide.dtype)
    if kind == "regression":
        total = F.mse_loss(wide, target, reduction="sum")
    else:
        _check_shares(target)
        total = F.binary_cross_entropy_with_logits(wide, target, reduction="sum")
    return _divide(total, target.numel(), num_items)


def _check_shares(target: Tensor) -> None:
    """Each label is there, is not, or is there to some degree."""
    if not readable(target):
        return
    inside = (target >= 0) & (target <= 1)
    if not inside.all():
        raise ValueError(
            "`labels` must be in [0, 1] for multi_label_classification, "
            f"got {float(target[~inside][0]):g}"
        )


def span_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    real: Tensor,
    num_items: NumItems = None,
) -> Tensor:
    """Mean of the cross-entropies of a span's start and end.

    Args:
        start_logits: ``[B, N]``.
        end_logits: ``[B, N]``.
        start_positions: ``[B]`` of any integer type; a position outside the sequence, or on
            padding, has no loss.
        end_positions: ``[B]`` int64, in the same way.
        real: ``[B, N]`` bool, which tokens are no padding.
        num_items: number of spans to divide by instead of this batch's own.

    Raises:
        ValueError: positions for another number of rows.
    """
    losses = []
    ends = (("start", start_logits, start_positions), ("end", end_logits, end_positions))
    for end, logits, positions in ends:
        name = f"{end}_positions"
        target = on_device(as_integers(positions, name), logits.device, name).reshape(-1)
        if target.shape[0] != logits.shape[0]:
            raise ValueError(
                f"`start_positions` and `end_positions` must be [{logits.shape[0]}], "
                f"got {list(positions.shape)}"
            )
        outside = (target < 0) | (target >= logits.shape[1])
        at_target = target.masked_fill(outside, 0).unsqueeze(1)
        outside |= ~real.gather(1, at_target).squeeze(1)
        losses.append(token_loss(logits, target.masked_fill(outside, IGNORE_INDEX), num_items))
    return (losses[0] + losses[1]) / 2
