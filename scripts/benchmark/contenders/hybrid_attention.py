"""Attention with queries and keys apart, as pretrained models have it: sparse, and full.

The heads share keys and values in groups of three, as SmolLM2's do. The sparse one sees four sinks,
256 local tokens, and per round the last ``chunk_length`` keys of a bucket.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.case import Case
from benchmark.contender import CHECK_LENGTH, Finding, check_close
from benchmark.contenders.attention_operation import Attend, AttentionContender, random_heads
from reformer_hf.ops.hybrid_attention import HybridWindow, hybrid_attention

GROUP = 3
LOCAL_WINDOW, SINKS = 256, 4


def _sparse(query: Tensor, key: Tensor, value: Tensor, case: Case, backend: str) -> Tensor:
    window = HybridWindow(LOCAL_WINDOW, SINKS, case.rounds, case.chunk_length, hash_seed=case.seed)
    return hybrid_attention(query, key, value, window, backend=backend)[0]


def _full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


class _GroupedAttention(AttentionContender):
    """Queries of all heads over keys and values of a third of them."""

    def unavailable(self, case: Case) -> str | None:
        """Heads that do not divide into groups."""
        if case.num_heads % GROUP:
            return f"needs a number of heads divisible by {GROUP}"
        return super().unavailable(case)

    def inputs(self, case: Case) -> list[Tensor]:
        """Query, key and value."""
        shared = case.num_heads // GROUP
        return random_heads(case, 3, (case.num_heads, shared, shared))


class HybridAttention(_GroupedAttention):
    """``hybrid_attention``, with hashing and sorting."""

    name = "reformer_hf"
    label = "reformer_hf"

    def attention(self, case: Case) -> Attend:
        """The operation with the backend of automatic choice."""
        return partial(_sparse, case=case, backend="auto")

    def check(self, case: Case) -> list[Finding]:
        """Also that the backend in use computes what the reference computes."""
        findings = super().check(case)
        if not all(finding.passed for finding in findings if finding.required):
            return findings
        short = replace(case, length=CHECK_LENGTH - 3, batch=1, dtype="float32")
        results = []
        for backend in ("auto", "reference"):
            query, key, value = inputs = [x.requires_grad_() for x in self.inputs(short)]
            out = _sparse(query, key, value, case=short, backend=backend)
            grads = torch.autograd.grad(out, inputs, random_heads(short, 1)[0])
            results.append((out.detach(), *grads))
        names = ("output", "query gradient", "key gradient", "value gradient")
        for name, actual, expected in zip(names, *results, strict=True):
            findings.append(check_close(f"{name} of the reference backend", actual, expected, 1e-4))
        return findings


class GroupedFullAttention(_GroupedAttention):
    """``scaled_dot_product_attention`` with its own grouped-query mode."""

    name = "sdpa"
    label = "full attention"

    def attention(self, case: Case) -> Attend:
        """The operation."""
        return _full
