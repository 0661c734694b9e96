"""What all decoders have in common: a context that is read, then one token at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmark.case import Case
from benchmark.contender import (
    CHECK_LENGTH,
    Contender,
    Finding,
    Workload,
    check_close,
    check_finite,
)
from benchmark.contenders.language_model import random_tokens

# New tokens that are decoded at most; positions and plans leave room for them.
SPARE = 512
# Tokens that the check decodes one by one.
_CHECKED = 12
_TOLERANCE = 1e-4


class DecodingContender(Contender):
    """A causal language model with a cache; a step reads one token.

    Attributes:
        must_equal_whole_pass: whether logits with cache have to be those of one pass over all
            tokens, or are compared for the report only.
    """

    must_equal_whole_pass: ClassVar[bool] = True

    @abstractmethod
    def make(self, case: Case) -> nn.Module:
        """The model, with positions for ``SPARE`` tokens beyond the case's length."""

    @abstractmethod
    def read(self, model: nn.Module, tokens: Tensor, length: int) -> tuple[Tensor, Any]:
        """Logits ``[B, V]`` of the last token, and the cache of all.

        Args:
            model: the model.
            tokens: ``[B, N]``.
            length: tokens that there will be in the end.
        """

    @abstractmethod
    def next(self, model: nn.Module, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits ``[B, V]`` after one more token ``[B, 1]``, and the cache with it."""

    @abstractmethod
    def whole(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits ``[B, N, V]`` of one pass without cache."""

    @abstractmethod
    def cache_bytes(self, cache: Any) -> int:
        """Bytes of a cache."""

    def make_seeded(self, case: Case) -> nn.Module:
        """The model of a case; equal cases give equal weights."""
        torch.manual_seed(case.seed)
        return self.make(case).to(device=case.device, dtype=case.torch_dtype).eval()

    def build(self, case: Case) -> Workload:
        """Model and a context that has been read."""
        return DecodingSteps(self, case)

    @torch.inference_mode()
    def check(self, case: Case) -> list[Finding]:
        """Logits of tokens decoded one by one against those of one pass, at a short length."""
        short = replace(
            case, length=CHECK_LENGTH, depth=min(case.depth, 2), batch=1, dtype="float32"
        )
        reason = self.unavailable(short)
        if reason is not None:
            return [Finding("available", False, reason)]
        model, tokens = self.make_seeded(short), random_tokens(short)
        start = CHECK_LENGTH - _CHECKED
        logits, cache = self.read(model, tokens[:, :start], CHECK_LENGTH)
        found = [logits]
        for i in range(start, CHECK_LENGTH - 1):
            logits, cache = self.next(model, tokens[:, i : i + 1], cache)
            found.append(logits)
        expected = self.whole(model, tokens)[:, start - 1 : CHECK_LENGTH - 1]
        close = check_close(
            "logits of one pass over all tokens", torch.stack(found, 1), expected, _TOLERANCE
        )
        return [replace(close, required=self.must_equal_whole_pass)]


class PrefillContender(DecodingContender):
    """The same; a step reads the whole context."""

    def build(self, case: Case) -> Workload:
        """Model and a context."""
        return PrefillSteps(self, case)


class DecodingSteps(Workload):
    """One token after the other, after a context."""

    @torch.inference_mode()
    def __init__(self, contender: DecodingContender, case: Case) -> None:
        self._contender = contender
        self.model = contender.make_seeded(case)
        tokens = random_tokens(case)
        self._token = tokens[:, :1]
        self._cached = case.length * case.batch
        self.logits, self.cache = contender.read(self.model, tokens, case.length + SPARE)

    @torch.inference_mode()
    def step(self) -> None:
        """Read one token."""
        self.logits, self.cache = self._contender.next(self.model, self._token, self.cache)

    def findings(self) -> list[Finding]:
        """Logits are finite; how large the cache is."""
        size = self._contender.cache_bytes(self.cache) / self._cached
        return [
            check_finite("logits", [self.logits]),
            Finding("memory", True, f"{size:,.0f} bytes a token of context", required=False),
        ]

    def parameters(self) -> Iterable[Tensor]:
        """The weights."""
        return self.model.parameters()

    def tokens(self, case: Case) -> int:
        """One of every sequence."""
        return case.batch


class PrefillSteps(DecodingSteps):
    """The context, again and again."""

    @torch.inference_mode()
    def __init__(self, contender: DecodingContender, case: Case) -> None:
        self._contender = contender
        self.model = contender.make_seeded(case)
        self._tokens = random_tokens(case)
        self._cached = case.length * case.batch
        self._length = case.length + SPARE

    @torch.inference_mode()
    def step(self) -> None:
        """Read the context."""
        self.cache = None  # not two at a time
        self.logits, self.cache = self._contender.read(self.model, self._tokens, self._length)

    def tokens(self, case: Case) -> int:
        """All of the context."""
        return case.batch * case.length
