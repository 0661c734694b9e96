"""Losses of the heads: pure functions, all of which honour ``num_items_in_batch``.

With gradient accumulation a Trainer passes the number of labelled items of *all* accumulated
batches; dividing the sum of losses by it makes the accumulated gradient that of the joined batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.checks import check_labels, check_shape
from reformer_hf.ops.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from reformer_hf.ops.precision import widen

NumItems = Tensor | int | float | None


def _divide(total: Tensor, count: Tensor | int, num_items: NumItems) -> Tensor:
    """``total / num_items``, or the mean over ``count``; an empty batch has loss 0."""
    items = count if num_items is None else num_items
    if isinstance(items, Tensor):
        return total / items.to(total.device).clamp(min=1)
    return total / max(1, items)


def token_loss(logits: Tensor, labels: Tensor, num_items: NumItems = None) -> Tensor:
    """Mean cross-entropy over labels other than -100.

    Args:
        logits: ``[.., V]``.
        labels: ``[..]`` int64.
        num_items: number of labelled items to divide by instead of this batch's own.

    Raises:
        ValueError: labels that are neither -100 nor in ``[0, V)``.
    """
    labels = labels.to(logits.device)
    check_labels(labels, logits.shape[-1])
    total = F.cross_entropy(
        widen(logits.flatten(0, -2)),
        labels.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    return _divide(total, (labels != IGNORE_INDEX).sum(), num_items)


def _summed_by_calls(hidden: Tensor, head: nn.Module, labels: Tensor, chunk_size: int) -> Tensor:
    """Sum of cross-entropies; the logits of a slice are formed again in the backward pass."""

    def of_slice(part: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(widen(head(part)), target, reduction="sum")

    rows = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    slices = zip(hidden[rows].split(chunk_size), labels[rows].split(chunk_size), strict=True)
    losses = [checkpoint(of_slice, *both, use_reentrant=False) for both in slices]
    return torch.stack(losses).sum()


def chunked_token_loss(
    hidden: Tensor, head: nn.Linear, labels: Tensor, chunk_size: int, num_items: NumItems = None
) -> Tensor:
    """:func:`token_loss` of ``head(hidden)`` without ever forming all logits.

    Args:
        hidden: ``[.., d]``.
        head: the projection to the vocabulary. If it is more than a matrix and a bias (an adapter
            around them, quantized weights), it is called on every slice, twice in training.
        labels: ``[..]`` int64.
        chunk_size: rows whose logits are formed together.
        num_items: number of labelled items to divide by instead of this batch's own.
    """
    labels = labels.to(hidden.device)
    check_labels(labels, head.out_features)
    if isinstance(head, FSDPModule):
        head.unshard()  # a call of the module would gather its weights, but there is none here
    hidden, targets = hidden.flatten(0, -2), labels.flatten()
    if type(head).forward is nn.Linear.forward:
        total = linear_cross_entropy(hidden, head.weight, head.bias, targets, chunk_size=chunk_size)
    else:
        total = _summed_by_calls(hidden, head, targets, chunk_size)
    return _divide(total, (labels != IGNORE_INDEX).sum(), num_items)


def vocabulary_head(
    hidden: Tensor,
    head: nn.Linear,
    labels: Tensor | None,
    chunk_size: int,
    num_items: NumItems = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Loss and logits of a projection to the vocabulary.

    Args:
        hidden: ``[B, N, d]``.
        head: the projection.
        labels: ``[B, N]`` int64, or ``None``: no loss.
        chunk_size: if positive and there are labels, the loss is computed in slices of that many
            labelled positions, and there are no logits.
        num_items: number of labelled items to divide by instead of this batch's own.

    Returns:
        The loss and the logits ``[B, N, V]``, each ``None`` where there is none.
    """
    if labels is None:
        return None, head(hidden)
    check_shape(labels, hidden.shape[:2], "labels")
    if chunk_size > 0:
        return chunked_token_loss(hidden, head, labels, chunk_size, num_items), None
    logits = head(hidden)
    return token_loss(logits, labels, num_items), logits


def shift_left(labels: Tensor) -> Tensor:
    """Labels ``[B, N]`` of the *next* token; the last position has none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def problem_type(config: ReformerConfig, labels: Tensor) -> str:
    """The configured problem type, or the one that labels and their number suggest.

    Nothing is written to the configuration.
    """
    if config.problem_type is not None:
        return str(config.problem_type)
    if config.num_labels == 1:
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
        labels: ``[B]`` int64 (single label), or ``[B, num_labels]`` float.
        num_items: number of labels to divide by instead of this batch's own.

    Raises:
        ValueError: labels whose shape or values do not fit the problem.
    """
    labels = labels.to(logits.device)
    kind = problem_type(config, labels)
    if kind == "single_label_classification":
        if labels.numel() != logits.shape[0]:
            raise ValueError(
                f"`labels` must be [batch] = [{logits.shape[0]}], got {list(labels.shape)}"
            )
        return token_loss(logits, labels.reshape(-1).to(torch.int64), num_items)
    if labels.numel() != logits.numel():
        raise ValueError(
            f"`labels` must be [batch, num_labels] = {list(logits.shape)} for {kind}, "
            f"got {list(labels.shape)}"
        )
    wide = widen(logits)
    target = labels.reshape(logits.shape).to(wide.dtype)
    if kind == "regression":
        total = F.mse_loss(wide, target, reduction="sum")
    else:
        total = F.binary_cross_entropy_with_logits(wide, target, reduction="sum")
    return _divide(total, target.numel(), num_items)


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
        start_positions: ``[B]`` int64; a position outside the sequence, or on padding, has no loss.
        end_positions: ``[B]`` int64, in the same way.
        real: ``[B, N]`` bool, which tokens are no padding.
        num_items: number of spans to divide by instead of this batch's own.

    Raises:
        ValueError: positions for another number of rows.
    """
    losses = []
    for logits, positions in ((start_logits, start_positions), (end_logits, end_positions)):
        target = positions.to(logits.device).reshape(-1)
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
