"""Padding that a batch shows although no mask was given.

Which tokens are real decides over more than the tokens that see them: the number of buckets follows
from how many there are. So a row would depend on the longest row of its batch wherever a collator
pads without saying so. Read as padding is only what cannot be anything else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.cross_entropy import IGNORE_INDEX


def real_by_labels(
    ids: Tensor | None, labels: Tensor | None, pad_token_id: int | None
) -> Tensor | None:
    """Padding at either end of a row: padding tokens for none of which there is a label.

    Args:
        ids: ``[B, N]`` token ids.
        labels: ``[B, N]``, the label of each of these tokens; -100 where it has none.
        pad_token_id: the padding token.

    Returns:
        ``[B, N]`` bool, which tokens are real; ``None`` if that cannot be known.
    """
    if pad_token_id is None or not isinstance(ids, Tensor) or not isinstance(labels, Tensor):
        return None
    if labels.shape != ids.shape or labels.is_floating_point():
        return None  # refused later, by name
    if labels.device != ids.device:
        return None
    padding = (ids == pad_token_id) & (labels.to(torch.int64) == IGNORE_INDEX)
    return ~(_from_the_start(padding) | _from_the_start(padding.flip(-1)).flip(-1))


def real_decoder_inputs(
    ids: Tensor | None, pad_token_id: int | None, training: bool
) -> Tensor | None:
    """Padding at the end of decoder inputs that come without labels.

    So they do where the loss is computed outside the model (`Trainer` with label smoothing): the
    collator has made them of labels, with the padding token in place of -100. Outside training a
    model may have written padding tokens itself, so there a row must end before another does.

    Args:
        ids: ``[B, N]`` decoder input ids; the first of a row is the start token, and real.
        pad_token_id: the padding token.
        training: nobody decodes with this model now.

    Returns:
        ``[B, N]`` bool, which tokens are real; ``None`` if that cannot be known.
    """
    if pad_token_id is None or not isinstance(ids, Tensor) or ids.dim() != 2:
        return None
    pad = ids == pad_token_id
    padding = _from_the_start(pad.flip(-1)).flip(-1)
    padding[:, :1] = False
    return ~padding if training else ~padding | pad[:, -1:].all()


def real_of_shifted(ids: Tensor, shifted: Tensor, real: Tensor) -> Tensor | None:
    """Which decoder inputs are real, in rows that are the labels moved to the right.

    Args:
        ids: ``[B, N]`` decoder input ids that were given.
        shifted: ``[B, N]``, those that follow from the labels.
        real: ``[B, N]`` bool, which of those stand for a label.

    Returns:
        ``[B, N]`` bool; all tokens of a row that holds something else. ``None`` if the labels are
        not those of these tokens.
    """
    if not isinstance(ids, Tensor) or ids.shape != shifted.shape:
        return None  # refused later, by name
    return real | ~(ids == shifted).all(dim=1, keepdim=True)


def _from_the_start(flags: Tensor) -> Tensor:
    """True as long as all flags before, and the own one, are."""
    return flags.to(torch.int64).cumprod(dim=-1) != 0
