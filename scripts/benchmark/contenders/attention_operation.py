"""What all attention operations have in common: one forward and backward pass, and checks of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from benchmark.case import Case
from benchmark.contender import (
    Contender,
    Finding,
    Workload,
    check_causal,
    check_finite,
)

# Takes what the contender's `inputs` are, returns the output [B, H, N, D].
Attend = Callable[..., Tensor]


def random_heads(case: Case, count: int, heads: Sequence[int] | None = None) -> list[Tensor]:
    """Tensors ``[B, H, N, D]`` with the strides that a projection of ``[B, N, d]`` gives.

    ``heads``: how many each of them has; ``None``: all those of the case.
    """
    generator = torch.Generator().manual_seed(case.seed + 1)
    return [
        torch.randn((case.batch, case.length, number, case.head_size), generator=generator)
        .to(device=case.device, dtype=case.torch_dtype)
        .transpose(1, 2)
        for number in heads or [case.num_heads] * count
    ]


class AttentionContender(Contender):
    """Attention of one layer without projections; a step is forward and backward.

    Attributes:
        must_be_causal: whether a later token that changes an earlier output is a failure, or noted.
    """

    must_be_causal: ClassVar[bool] = True

    @abstractmethod
    def attention(self, case: Case) -> Attend:
        """The operation; whatever it hashes with is drawn from torch's global generator."""

    def inputs(self, case: Case) -> list[Tensor]:
        """Query/key and value."""
        return random_heads(case, 2)

    def build(self, case: Case) -> AttentionStep:
        """Inputs."""
        return AttentionStep(self.attention(case), self.inputs(case), case)

    @torch.no_grad()
    def properties(self, case: Case) -> list[Finding]:
        """Who sees whom; in fp32, since where a token is sorted to decides what is rounded."""
        case = replace(case, dtype="float32")
        inputs = self.inputs(case)
        changed = [x.clone() for x in inputs]
        border = case.length - case.length // 4
        for x in changed:
            x[:, :, border:].neg_()  # which moves tokens to other buckets
        outputs = []
        for parts in (inputs, changed):
            torch.manual_seed(case.seed)
            outputs.append(self.attention(case)(*parts)[:, :, :border])
        edited = f"the last {case.length - border} tokens"
        return [check_causal(outputs, (0, 1, 3), edited, self.must_be_causal)]


class AttentionStep(Workload):
    """Forward and backward pass of an attention operation."""

    def __init__(self, attend: Attend, inputs: list[Tensor], case: Case) -> None:
        torch.manual_seed(case.seed)
        self._attend = attend
        self._grad_out = random_heads(case, 3)[-1]
        self._inputs = [x.requires_grad_() for x in inputs]
        self._out: Tensor | None = None
        self._grads: tuple[Tensor | None, ...] = ()

    def step(self) -> None:
        """Output and gradients."""
        self._out, self._grads = None, ()
        out = self._attend(*self._inputs)
        self._grads = torch.autograd.grad(out, self._inputs, self._grad_out)
        self._out = out.detach()

    def findings(self) -> list[Finding]:
        """Output and gradients are finite and have the shape of the inputs."""
        expected, out = self._grad_out.shape, self._out
        shape = None if out is None else tuple(out.shape)
        return [
            Finding("shape of the output", shape == tuple(expected), f"{shape}"),
            check_finite("output", [self._out]),
            check_finite("gradients", self._grads),
        ]

    def parameters(self) -> Iterable[Tensor]:
        """None: the gradients of the inputs are handed on."""
        return ()
