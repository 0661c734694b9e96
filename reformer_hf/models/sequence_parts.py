"""What the ranks that share sequences agree on before a pass.

A rank sees its own tokens only, but who attends to whom, how many buckets there are and which
positions tokens have follows from whole rows. So the ranks exchange masks, lengths and seeds first,
and refuse together what does not fit together; whoever waited for a rank that has given up would
wait in vain.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from reformer_hf.ops.padding import Padding
from reformer_hf.ops.sequence_group import SequenceGroup, SequenceShard, balanced_lengths

logger = logging.getLogger(__name__)
_said: set[str] = set()

_MUST_BE_EQUAL = ("rows of a batch", "hash rounds", "training mode", "gradients", "position ids")


@dataclass(frozen=True)
class OwnPart:
    """What a rank was given.

    Attributes:
        vectors: ``[B, n, d]`` token vectors.
        padding: among these tokens.
        position_ids: ``[B or 1, n]``, or ``None``.
        num_hashes: asked for, or ``None``.
        training: the model draws new seeds.
        seeds: that it drew.
        source_length: tokens of the source that it holds; 0 without one.
        source_real: ``[B, m]`` bool, which of them are real; ``None``: all.
    """

    vectors: Tensor
    padding: Padding | None
    position_ids: Tensor | None
    num_hashes: int | None
    training: bool
    seeds: tuple[int, int]
    source_length: int = 0
    source_real: Tensor | None = None


@dataclass(frozen=True)
class WholeRows:
    """What follows from all parts.

    Attributes:
        shard: of the tokens; ``None`` where every rank has all of them.
        source: of the tokens that a decoder attends to; ``None`` without a source.
        padding: among all tokens of the rows.
        position_ids: ``[B or 1, N]``, or ``None``.
        source_real: ``[B, M]`` bool, or ``None``.
        seeds: the first rank's.
    """

    shard: SequenceShard | None
    source: SequenceShard | None
    padding: Padding | None
    position_ids: Tensor | None
    source_real: Tensor | None
    seeds: tuple[int, int]


def agree(group: SequenceGroup, part: OwnPart, split: bool, name: str) -> WholeRows:
    """Learn about the whole rows, on every rank.

    Args:
        group: who shares the sequences.
        part: what this rank was given.
        split: the ranks hold parts of the tokens; else all hold the same ones, and parts of the
            source alone.
        name: of the tokens, for errors.

    Raises:
        ValueError: on all ranks, what was given does not fit together.
    """
    batch, length, _ = part.vectors.shape
    equal = (
        *(batch, part.num_hashes or 0, part.training, torch.is_grad_enabled()),
        0 if part.position_ids is None else part.position_ids.shape[0],
    )
    masks = (part.padding is not None, part.source_real is not None)
    numbers = (*masks, length, part.source_length, *part.seeds, _trace(part.vectors))
    of_all = group.exchange(*map(int, equal), *numbers)
    for what, *found in zip(_MUST_BE_EQUAL, *of_all, strict=False):
        if len(set(found)) > 1:
            raise ValueError(f"ranks that share sequences must have the same {what}, got {found}")
    padded, source_padded, lengths, source_lengths, hash_seeds, dropout_seeds, traces = (
        [row[len(equal) + k] for row in of_all] for k in range(7)
    )
    if split and len({*traces}) == 1 and length > 1:
        _say_once_that_parts_are_equal(name)
    shard, padding, position_ids = None, part.padding, part.position_ids
    if split:
        shard = _shard(group, lengths, name)
        if any(padded):
            padding = Padding.from_attention_mask(shard.gather(_real(padding, part.vectors)))
        if position_ids is not None:
            position_ids = shard.gather(position_ids.to(torch.int64))
    elif len(set(lengths)) > 1:
        raise ValueError(f"`{name}` must be the same on ranks that share a source, got {lengths}")
    source, source_real = None, part.source_real
    if part.source_length:
        source = _shard(group, source_lengths, "encoder_outputs")
        if any(source_padded):
            if source_real is None:
                shape = (batch, part.source_length)
                source_real = torch.ones(shape, dtype=torch.bool, device=part.vectors.device)
            source_real = source.gather(source_real)
    seeds = (hash_seeds[0], dropout_seeds[0])
    return WholeRows(shard, source, padding, position_ids, source_real, seeds)


def _trace(vectors: Tensor) -> int:
    """A number that tells tokens of one rank from those of another."""
    places = torch.arange(1, vectors.shape[1] + 1, device=vectors.device)
    found = (vectors.detach()[..., 0].double() * places).sum().nan_to_num(0.0, 0.0, 0.0)
    return int(found.view(torch.int64))


def _say_once_that_parts_are_equal(name: str) -> None:
    if name not in _said:
        _said.add(name)
        logger.warning(
            "`%s` holds the same tokens on all ranks that share sequences, as if every row "
            "repeated them: `split_batch` gives each rank its part",
            name,
        )


def _shard(group: SequenceGroup, lengths: list[int], name: str) -> SequenceShard:
    expected = balanced_lengths(sum(lengths), group.size)
    if tuple(lengths) != expected:
        raise ValueError(
            f"`{name}` must hold consecutive parts of the same rows, {list(expected)} tokens on "
            f"the ranks that share them, got {lengths}: cut a batch with `split_batch`"
        )
    return SequenceShard(group, expected)


def _real(padding: Padding | None, vectors: Tensor) -> Tensor:
    if padding is not None:
        return padding.real
    return torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
