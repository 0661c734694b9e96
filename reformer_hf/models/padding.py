"""Padding that a batch shows although no mask was given.

Which tokens are real decides over more than the tokens that see them: the number of buckets follows
from how many there are. So a row would depend on the longest row of its batch wherever a collator
pads without saying so. Read as padding is only what cannot be anything else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reformer_hf.ops.cross_entropy import IGNORE_INDEX
from reformer_hf.ops.sequence_group import SequenceGroup


def real_by_labels(
    ids: Tensor | None,
    labels: Tensor | None,
    pad_token_id: int | None,
    group: SequenceGroup | None = None,
) -> Tensor | None:
    """Padding at either end of a row: padding tokens for none of which there is a label.

    Args:
        ids: ``[B, N]`` token ids.
        labels: ``[B, N]``, the label of each of these tokens; -100 where it has none.
        pad_token_id: the padding token.
        group: with whom this rank shares the rows, of which it holds a part.

    Returns:
        ``[B, N]`` bool, which tokens are real; ``None`` if that cannot be known.
    """
    padding = None
    if isinstance(ids, Tensor) and isinstance(labels, Tensor) and pad_token_id is not None:
        # What does not fit together is refused later, by name.
        fits = labels.shape == ids.shape and labels.device == ids.device and ids.dim() == 2
        if fits and not labels.is_floating_point():
            padding = (ids == pad_token_id) & (labels.to(torch.int64) == IGNORE_INDEX)
    return _over_whole_rows(_real_inside, padding, group)


def _real_inside(padding: Tensor) -> Tensor:
    return ~(_from_the_start(padding) | _from_the_start(padding.flip(-1)).flip(-1))


def _over_whole_rows(
    compute: Callable[[Tensor], Tensor], flags: Tensor | None, group: SequenceGroup | None
) -> Tensor | None:
    """What is computed of the flags ``[B, N]`` of whole rows; of these, this rank's part.

    ``None`` if a rank has no flags.
    """
    if group is None:
        return None if flags is None else compute(flags)
    sizes = (0, 0) if flags is None else (flags.shape[0], flags.shape[1])
    of_all = group.exchange(*sizes)
    if flags is None or len({rows for rows, _ in of_all}) > 1 or not all(n for _, n in of_all):
        return None
    lengths = [n for _, n in of_all]
    whole = compute(group.gather(flags, lengths))
    start = sum(lengths[: group.rank])
    return whole[:, start : start + flags.shape[1]]


def real_decoder_inputs(
    ids: Tensor | None,
    pad_token_id: int | None,
    training: bool,
    group: SequenceGroup | None = None,
) -> Tensor | None:
    """Padding at the end of decoder inputs that come without labels.

    So they do where the loss is computed outside the model (`Trainer` with label smoothing): the
    collator has made them of labels, with the padding token in place of -100. Outside training a
    model may have written padding tokens itself, so there a row must end before another does.

    Args:
        ids: ``[B, N]`` decoder input ids; the first of a row is the start token, and real.
        pad_token_id: the padding token.
        training: nobody decodes with this model now.
        group: with whom this rank shares the rows, of which it holds a part.

    Returns:
        ``[B, N]`` bool, which tokens are real; ``None`` if that cannot be known.
    """

    def real(pad: Tensor) -> Tensor:
        padding = _from_the_start(pad.flip(-1)).flip(-1)
        padding[:, :1] = False
        return ~padding if training else ~padding | pad[:, -1:].all()

    pad = None
    if pad_token_id is not None and isinstance(ids, Tensor) and ids.dim() == 2:
        pad = ids == pad_token_id
    return _over_whole_rows(real, pad, group)


def real_of_shifted(
    ids: Tensor, shifted: Tensor, real: Tensor, group: SequenceGroup | None = None
) -> Tensor | None:
    """Which decoder inputs are real, in rows that are the labels moved to the right.

    Args:
        ids: ``[B, N]`` decoder input ids that were given.
        shifted: ``[B, N]``, those that follow from the labels.
        real: ``[B, N]`` bool, which of those stand for a label.
        group: with whom this rank shares the rows, of which it holds a part.

    Returns:
        ``[B, N]`` bool; all tokens of a row that holds something else. ``None`` if the labels are
        not those of these tokens.
    """
    same = None
    if isinstance(ids, Tensor) and ids.shape == shifted.shape:  # else refused later, by name
        same = ids == shifted
    other = _over_whole_rows(_any_other, same, group)
    return None if other is None else real | other


def _any_other(same: Tensor) -> Tensor:
    return (~same.all(dim=1, keepdim=True)).expand_as(same)


def _from_the_start(flags: Tensor) -> Tensor:
    """True as long as all flags before, and the own one, are."""
    return flags.to(torch.int64).cumprod(dim=-1) != 0
