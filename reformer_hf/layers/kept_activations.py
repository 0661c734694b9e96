"""What the forward pass keeps for the backward pass, where steps are recomputed.

In the backward pass the last steps come first, when most gradients of parameters do not exist yet.
Up to as much memory as these will take something can be kept for nothing: the peak is no higher,
and short inputs are hardly computed twice. Long inputs may keep a few streams more than that, as
many in deep stacks as in shallow ones.

:func:`choose_kept` is a greedy knapsack: candidates are taken in the order of the time that a byte
saves, as long as they fit. It does not look for the best set (an exact knapsack would gain at most
one candidate), it does not keep activations of steps before the last ones (streams would have to be
restored across them), and it does not measure time: the order is that of the multiplications saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from reformer_hf.layers.footprint import Footprint
from reformer_hf.ops.reversible import Keep

# What may be kept where gradients leave no room: as much as this many streams, whatever the depth,
# but at most 256 MiB for all tokens of a pass.
_STREAMS, _BYTES = 8, 1 << 28


def room_to_keep(parameters: Iterable[nn.Parameter], stream: int, ranks: int = 1) -> int:
    """Bytes that a forward pass may keep: ``max(gradients, min(8 stream, 256 MiB / ranks))``.

    Args:
        parameters: of the stack.
        stream: bytes of a stored stream, of the tokens of one rank.
        ranks: processes that share the sequences; each may keep its part of what one would.
    """
    gradients = sum(
        p.numel() * p.element_size()
        for p in parameters
        # With a hook, an optimizer may use up every gradient at once.
        if p.requires_grad
        and not (p.is_leaf and p.grad is not None)
        and not p._post_accumulate_grad_hooks
    )
    return max(gradients, min(_STREAMS * stream, _BYTES // ranks))


def choose_kept(footprints: Sequence[Footprint | None], room: int, stream: int) -> list[Keep]:
    """What of each step is kept, so that the backward pass need not compute it again.

    In the order of what they save per byte: results that operations keep; the stream before a step,
    with which not its value is needed again but only its gradients, for which its last product is
    not; all activations of the last steps.

    Args:
        footprints: of the steps, in order; ``None``: nothing can be kept of a step.
        room: bytes that may be kept.
        stream: bytes of a stored stream.

    Returns:
        For each step what is kept; activations of none or of the last ones.
    """
    keep, taken = [Keep()] * len(footprints), [0] * len(footprints)
    known = [(k, f) for k, f in enumerate(footprints) if f is not None]
    for k, own in reversed(known):
        if 0 < own.results <= room:
            keep[k], taken[k] = Keep(results=True), own.results
            room -= own.results
    for k, own in sorted(known, key=lambda step: (step[1].last_product, step[0]), reverse=True):
        if own.last_product and stream <= room:
            keep[k] = replace(keep[k], stream=True)
            taken[k] += stream
            room -= stream
    for k in reversed(range(len(footprints))):
        last = footprints[k]
        if last is None or last.saved - taken[k] > room:
            break
        room -= last.saved - taken[k]
        keep[k] = Keep(activations=True)
    return keep


def size_of_kept(footprints: Sequence[Footprint | None], keep: Sequence[Keep], stream: int) -> int:
    """Bytes of what is kept of all steps."""
    return sum(
        own.saved if kept.activations else stream * kept.stream + own.results * kept.results
        for own, kept in zip(footprints, keep, strict=True)
        if own is not None
    )
