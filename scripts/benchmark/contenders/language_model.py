"""What all language models have in common: the training step, and checks of it."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.case import Case
from benchmark.contender import (
    Contender,
    Finding,
    Workload,
    check_causal,
    check_finite,
)

# At the start every token is about equally likely: the loss is near log V.
_LOSS_TOLERANCE = 0.5


def random_tokens(case: Case) -> Tensor:
    """``[B, N]`` token ids."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.batch, case.length)
    return torch.randint(0, case.vocab_size, shape, generator=generator).to(case.device)


class LanguageModelContender(Contender):
    """A causal language model; a step is a forward and a backward pass.

    Attributes:
        recomputes_by_itself: the model recomputes activations in its backward pass without entering
            autocast again. Its backward pass then runs inside autocast, or it would recompute in
            fp32 what it had computed in bf16, and be the slower for it.
        must_be_causal: whether a later token that changes an earlier logit is a failure, or noted.
        unused: parameters that the model has and never reads.
    """

    recomputes_by_itself: ClassVar[bool] = False
    must_be_causal: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make(self, case: Case) -> nn.Module:
        """The model in training mode, with new weights, on the CPU."""

    @abstractmethod
    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits ``[B, N, V]``."""

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        logits = self.logits(model, tokens)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    def make_seeded(self, case: Case) -> nn.Module:
        """The model of a case on its device; equal cases give equal weights."""
        torch.manual_seed(case.seed)
        return self.make(case).to(case.device).train()

    def build(self, case: Case) -> TrainingStep:
        """Model and tokens."""
        return TrainingStep(self, case)

    @torch.no_grad()
    def properties(self, case: Case) -> list[Finding]:
        """Who sees whom."""
        case = replace(case, dtype="float32")
        model, tokens = self.make_seeded(case).eval(), random_tokens(case)
        border = case.length - case.length // 4
        changed = tokens.clone()
        changed[:, border:] = (changed[:, border:] + 1) % case.vocab_size
        logits = []
        for ids in (tokens, changed):
            torch.manual_seed(case.seed)  # peers draw their rotations from the global generator
            logits.append(self.logits(model, ids)[:, :border])
        edited = f"the last {case.length - border} tokens"
        return [check_causal(logits, (0, 2), edited, self.must_be_causal)]


def common_fields(case: Case) -> dict[str, Any]:
    """Fields of the common model that both Reformers of the transformers family know."""
    return {
        "vocab_size": case.vocab_size,
        "hidden_size": case.hidden_size,
        "attn_layers": ["lsh"] * case.depth,
        "num_attention_heads": case.num_heads,
        "attention_head_size": case.head_size,
        "feed_forward_size": case.feed_forward_size,
        "hidden_dropout_prob": 0.0,
        "num_hashes": case.rounds,
        "lsh_attn_chunk_length": case.chunk_length,
        "max_position_embeddings": case.length,
    }


class TrainingStep(Workload):
    """Forward and backward pass of one batch; gradients are dropped before each step."""

    def __init__(self, contender: LanguageModelContender, case: Case) -> None:
        self._contender, self._case = contender, case
        self.model = contender.make_seeded(case)
        self._tokens = random_tokens(case)
        self.last_loss: Tensor | None = None

    def _autocast(self, cached: bool) -> contextlib.AbstractContextManager[object]:
        if self._case.dtype == "float32":
            return contextlib.nullcontext()
        device, dtype = self._case.device_type, self._case.torch_dtype
        return torch.autocast(device, dtype=dtype, cache_enabled=cached)

    def step(self) -> None:
        """One training step without the optimizer."""
        contender = self._contender
        self.model.zero_grad(set_to_none=True)
        # Weights that were cast without gradients must not come back from autocast's cache.
        with self._autocast(cached=not contender.recomputes_by_itself):
            loss = contender.loss(self.model, self._tokens)
            if contender.recomputes_by_itself:
                loss.backward()
        if not contender.recomputes_by_itself:
            loss.backward()
        self.last_loss = loss.detach()

    def findings(self) -> list[Finding]:
        """The loss is near ``log V``, and all parameters have finite gradients."""
        expected = math.log(self._case.vocab_size)
        loss = math.nan if self.last_loss is None else float(self.last_loss)
        return [
            Finding(
                "loss at the start",
                abs(loss - expected) <= _LOSS_TOLERANCE,
                f"{loss:.3f}, log V = {expected:.3f}",
            ),
            check_finite("gradients", (p.grad for p in self.parameters())),
        ]

    def parameters(self) -> Iterable[Tensor]:
        """The trained parameters."""
        unused = self._contender.unused
        return (p for name, p in self.model.named_parameters() if name not in unused)
