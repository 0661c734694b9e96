"""One sequence over several processes: what they exchange.

Every rank of a group of ``P`` processes holds consecutive tokens of every row. Attention needs all
tokens, but head by head: one all-to-all turns ``n`` tokens of all heads into all ``N`` tokens of
``H / P`` heads, another turns the result back (DeepSpeed-Ulysses, arXiv:2309.14509). Attention that
sees a few neighbours only is sent those by the ranks before and behind it.

**Gradients.** A loss is the same number on every rank, and every rank calls ``backward()`` on it:
each sum over the group is, in the backward pass, a sum of ``P`` equal gradients. So what a rank
finds for a parameter is ``P`` times the share of its own tokens, and the *mean* over the ranks,
which `DistributedDataParallel` and FSDP form, is the gradient of the loss.
"""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from reformer_hf.ops.seeds import fold_seed

# Folded into the seed of a pass for random numbers that belong to a rank, and to all alike.
_OF_A_RANK, _OF_ALL = 1, 2


def balanced_lengths(length: int, parts: int) -> tuple[int, ...]:
    """How many of ``length`` consecutive tokens each of ``parts`` ranks holds, the longer first."""
    return tuple(length // parts + (rank < length % parts) for rank in range(parts))


class SequenceGroup:
    """The processes that hold parts of the same sequences.

    Attributes:
        rank: of this process in the group, in the order of the tokens.
        size: number of processes, ``P``.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> SequenceGroup:
        # A copy of a model is on the same processes.
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a model whose sequences are split is bound to its processes and cannot be pickled: "
            "make it whole first, with `split_sequence(model, None)`"
        )

    @property
    def _device(self) -> torch.device:
        """Where small tensors must be to be exchanged."""
        on_gpu = "nccl" in str(dist.get_backend(self._group))
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    # ---- numbers and errors, outside of autograd ----

    def exchange(self, *numbers: int) -> list[tuple[int, ...]]:
        """The numbers that every rank gives, by rank; every rank gives as many."""
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        return [tuple(row.tolist()) for row in self._all_gather(own)]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A piece of work without exchanges: if it fails on one rank, it fails on all.

        Otherwise the others would wait for that rank in the next exchange.

        Raises:
            Exception: what was raised within; on the other ranks, an error of the same built-in
                kind (else a `RuntimeError`) that names the rank.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = [rank for rank, (ok,) in enumerate(self.exchange(error is None)) if not ok]
        if not failed:
            return
        said: list[Any] = [None] * self.size
        own = None if error is None else (type(error).__name__, str(error))
        dist.all_gather_object(said, own, group=self._group)
        if error is not None:
            raise error
        kind, message = said[failed[0]]
        found = getattr(builtins, kind, RuntimeError)
        raise found(f"rank {failed[0]} of {self.size} that share a sequence: {message}")

    # ---- tensors ----

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks, on every rank."""
        total: Tensor = _Sum.apply(x, self)
        return total

    def gather(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """All ranks' ``[B, n, ..]`` behind one another, ``[B, N, ..]``, on every rank.

        Args:
            x: what this rank holds; the ranks may differ in ``n``.
            lengths: every rank's ``n``, where it is known.
        """
        if lengths is None:
            lengths = [n for (n,) in self.exchange(x.shape[1])]
        gathered: Tensor = _Gather.apply(x, self, tuple(lengths), 1)
        return gathered

    def gather_heads(self, x: Tensor) -> Tensor:
        """All ranks' heads ``[B, H / P, ..]`` behind one another, ``[B, H, ..]``."""
        gathered: Tensor = _Gather.apply(x, self, (x.shape[1],) * self.size, 1)
        return gathered

    def shift(self, x: Tensor, step: int, edge: int) -> Tensor:
        """The rows' tokens moved by one place, over the borders between ranks.

        Args:
            x: ``[B, n]`` integers, this rank's part.
            step: -1: everything moves to the left; 1: to the right.
            edge: what moves in at the end of the whole rows.
        """
        border = x[:, :1] if step < 0 else x[:, -1:]
        borders = self._all_gather(border.contiguous())
        source = self.rank - step
        inside = 0 <= source < self.size
        entering = borders[source] if inside else torch.full_like(border, edge)
        parts = (x[:, 1:], entering) if step < 0 else (entering, x[:, :-1])
        return torch.cat(parts, dim=1)

    def _all_gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's tensor of one shape, which lies at a stretch."""
        sent = x.to(torch.uint8) if x.dtype == torch.bool else x
        found = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(found, sent, group=self._group)
        return [part.to(x.dtype) for part in found]

    def _all_reduce(self, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self._group)
        return total

    def _all_to_all(self, parts: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Numbers ``[sum(sent)]`` in the order of the ranks they go to; ``[sum(received)]``."""
        found = parts.new_empty(sum(received))
        dist.all_to_all_single(found, parts, list(received), list(sent), group=self._group)
        return found


def together(group: SequenceGroup | None) -> contextlib.AbstractContextManager[None]:
    """:meth:`SequenceGroup.together`, or nothing where no sequence is split."""
    return contextlib.nullcontext() if group is None else group.together()


@dataclass(frozen=True)
class SequenceShard:
    """The part of all rows that this rank holds in one forward pass.

    Attributes:
        group: who holds the other parts.
        lengths: tokens of a row that every rank holds; their sum is ``N``.
    """

    group: SequenceGroup
    lengths: tuple[int, ...]

    @property
    def span(self) -> slice:
        """The positions of this rank's tokens."""
        ends = (0, *accumulate(self.lengths))
        return slice(ends[self.group.rank], ends[self.group.rank + 1])

    @property
    def longest(self) -> int:
        """Tokens of the rank that holds the most: what ranks must decide alike follows from it."""
        return max(self.lengths)

    def heads(self, num_heads: int) -> tuple[int, int]:
        """The first of this rank's heads, and the one behind its last."""
        own = num_heads // self.group.size
        return self.group.rank * own, (self.group.rank + 1) * own

    def gather(self, x: Tensor) -> Tensor:
        """``[B, n, ..]`` of all ranks as ``[B, N, ..]``."""
        return self.group.gather(x, self.lengths)

    def exchange_tokens_for_heads(self, x: Tensor) -> Tensor:
        """``[B, n, F]``, all heads' features of some tokens, as ``[B, N, F / P]``."""
        exchanged: Tensor = _TokensForHeads.apply(x, self)
        return exchanged

    def exchange_heads_for_tokens(self, x: Tensor) -> Tensor:
        """``[B, N, F / P]``, some heads' features of all tokens, as ``[B, n, F]``."""
        exchanged: Tensor = _HeadsForTokens.apply(x, self)
        return exchanged

    def neighbours(self, before: int, after: int) -> tuple[int, int] | None:
        """How many tokens before and behind its own a rank is sent by its two neighbours.

        None before the first rank's and none behind the last's. ``None`` if some rank holds fewer
        tokens than a neighbour needs, so that windows reach over more than two ranks.
        """
        if min(self.lengths) < max(before, after):
            return None
        last = self.group.rank == self.group.size - 1
        return before * (self.group.rank > 0), after * (not last)

    def extend(self, x: Tensor, before: int, after: int) -> Tensor:
        """``[B, n, F]`` with the last ``before`` tokens of the rank before, the first ``after``
        of the rank behind.

        Args:
            x: this rank's tokens.
            before: tokens that every rank but the first is sent by the one before it.
            after: tokens that every rank but the last is sent by the one behind it.
        """
        extended: Tensor = _Extend.apply(x, self, before, after)
        return extended

    @contextlib.contextmanager
    def randomness(self, seed: int, device: torch.device, *, own: bool = True) -> Iterator[None]:
        """Global random numbers from a seed that all ranks know; what they were comes back after.

        Args:
            seed: of the pass.
            device: where else than on the CPU numbers are drawn.
            own: numbers of this rank's own, as for other tokens; else those of all ranks.
        """
        on_cpu = device.type == "cpu"
        kind = "cuda" if on_cpu else device.type
        path = (_OF_A_RANK, self.group.rank) if own else (_OF_ALL,)
        with torch.random.fork_rng([] if on_cpu else [device], device_type=kind):
            torch.manual_seed(fold_seed(seed, *path))
            yield


class _Sum(torch.autograd.Function):
    """The sum over a group, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group._all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    """Parts behind one another; the gradient of a part is the sum of what the ranks found."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: SequenceGroup, lengths: tuple[int, ...], dim: int
    ) -> Tensor:
        ctx.group, ctx.lengths, ctx.dim = group, lengths, dim
        longest = max(lengths)
        padded = x.new_zeros((*x.shape[:dim], longest, *x.shape[dim + 1 :]))
        padded.narrow(dim, 0, x.shape[dim]).copy_(x)
        parts = group._all_gather(padded)
        return torch.cat([p.narrow(dim, 0, n) for p, n in zip(parts, lengths, strict=True)], dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        start = sum(ctx.lengths[: ctx.group.rank])
        total: Tensor = _Sum.apply(grad, ctx.group)
        return total.narrow(ctx.dim, start, ctx.lengths[ctx.group.rank]), None, None, None


class _TokensForHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: SequenceShard) -> Tensor:
        ctx.shard = shard
        group, batch, features = shard.group, x.shape[0], x.shape[2] // shard.group.size
        # [B, n, P f] as [P, B, n, f]: a block for every rank.
        blocks = x.unflatten(2, (group.size, features)).movedim(2, 0).contiguous()
        row = batch * features
        received = [n * row for n in shard.lengths]
        found = group._all_to_all(blocks.flatten(), [x.shape[1] * row] * group.size, received)
        if batch == 1:
            return found.view(1, -1, features)
        parts = found.split(received)
        return torch.cat([p.view(batch, -1, features) for p in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _HeadsForTokens.apply(grad, ctx.shard), None


class _HeadsForTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: SequenceShard) -> Tensor:
        ctx.shard = shard
        group, (batch, _, features) = shard.group, x.shape
        row, own = batch * features, shard.lengths[shard.group.rank]
        if batch == 1:
            parts = x.contiguous().flatten()
        else:
            parts = torch.cat([p.flatten() for p in x.split(list(shard.lengths), dim=1)])
        sent = [n * row for n in shard.lengths]
        found = group._all_to_all(parts, sent, [own * row] * group.size)
        return found.view(group.size, batch, own, features).movedim(0, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _TokensForHeads.apply(grad, ctx.shard), None


class _Extend(torch.autograd.Function):
    """A part with some tokens of its neighbours; what these get comes back to where they live."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: SequenceShard, before: int, after: int) -> Tensor:
        ctx.shard, ctx.reach = shard, (before, after)
        length = x.shape[1]
        ends = (x[:, :after], x[:, length - before :])
        got = _swap_ends(shard, x, *ends, before, after)
        return torch.cat((got[0], x, got[1]), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        before, after = ctx.reach
        shard = ctx.shard
        held = shard.neighbours(before, after)
        first = 0 if held is None else held[0]
        own = shard.lengths[shard.group.rank]
        total = grad[:, first : first + own].clone()
        ends = (grad[:, :first], grad[:, first + own :])
        got = _swap_ends(shard, grad, *ends, after, before)
        # From the rank before: what my first tokens got there; from the one behind: my last ones.
        total[:, : got[0].shape[1]] += got[0]
        total[:, own - got[1].shape[1] :] += got[1]
        return total, None, None, None


def _swap_ends(
    shard: SequenceShard,
    like: Tensor,
    to_previous: Tensor,
    to_next: Tensor,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    """Send tokens to both neighbours; what comes from them, ``before`` and ``after`` tokens.

    The first rank has none before it, the last none behind it, and both send that way nothing.
    """
    group, (batch, _, features) = shard.group, like.shape
    sent, received = [0] * group.size, [0] * group.size
    parts: list[Tensor] = []
    if group.rank > 0:
        parts.append(to_previous.flatten())
        sent[group.rank - 1] = to_previous.numel()
        received[group.rank - 1] = batch * before * features
    if group.rank < group.size - 1:
        parts.append(to_next.flatten())
        sent[group.rank + 1] = to_next.numel()
        received[group.rank + 1] = batch * after * features
    found = group._all_to_all(torch.cat(parts), sent, received)
    first = received[group.rank - 1] if group.rank > 0 else 0
    return (
        found[:first].view(batch, -1, features) if first else like[:, :0],
        found[first:].view(batch, -1, features) if first < found.numel() else like[:, :0],
    )
