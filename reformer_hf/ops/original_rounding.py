"""A rounding of transformers' Reformer that is large enough to be part of its function.

A token that sees only itself has the scores ``SELF_SCORE = -1e5``, and seeing itself ``n`` times in
a round gives ``lse_r = -1e5 + log n``, which fp32 rounds to a multiple of 1/128. The original forms
the weights of a round, ``exp(S - lse_r)``, and of the rounds, ``exp(lse_r - lse)``, from these, so
that the weights of such a token sum to

    ``mass = sum_r n_r exp(-1e5 - lse_r) exp(lse_r - lse)``

and not to 1: 0.998 in two rounds, 1.003 in four. The first token of every causal sequence is one of
them. Our backends are exact there; models in the original's ``chunk`` pattern multiply by ``mass``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reformer_hf.ops.attention_window import SELF_SCORE, AttentionWindow
from reformer_hf.ops.sorting import BucketOrder


def _sightings(order: BucketOrder, window: AttentionWindow) -> Tensor:
    """How often every token meets itself among the chunks of each round, ``[B', H', R, N]``."""
    rounds, length = order.rank.shape[2:]
    per_round = -(-length // window.chunk_length)
    first = torch.arange(rounds, device=order.rank.device).view(-1, 1) * per_round
    chunk = order.rank // window.chunk_length + first
    counts = torch.zeros_like(chunk)
    for other in range(rounds):
        step = chunk - chunk[:, :, other : other + 1]
        for shift in range(-window.after, window.before + 1):
            counts += (step - shift).remainder(rounds * per_round) == 0
    return counts


@torch.no_grad()
def lonely_mass(
    order: BucketOrder | None, lonely: Tensor, window: AttentionWindow, dtype: torch.dtype
) -> Tensor | None:
    """What the original's weights of every token sum to.

    Args:
        order: the sorted order; ``None``: one round in the order of the sequence.
        lonely: ``[B, H, N]`` bool, which tokens see only themselves.
        window: the original's pattern, with ``exclude_self``.
        dtype: in which scores are summed.

    Returns:
        ``[B, H, N]`` of that dtype, 1 where a token sees another; ``None`` if all are 1.
    """
    if order is None or not window.count_duplicates:
        return None  # the original has one round then, or no such way of counting
    counts = _sightings(order, window).to(dtype)
    per_round = SELF_SCORE + counts.log()
    merged = per_round.logsumexp(dim=2, keepdim=True)
    mass = (counts * torch.exp(SELF_SCORE - per_round) * torch.exp(per_round - merged)).sum(dim=2)
    return torch.where(lonely, mass, 1.0)
