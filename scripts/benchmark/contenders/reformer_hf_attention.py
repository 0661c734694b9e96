"""Our LSH attention: hash, sort, attend within windows, merge the rounds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmark.case import Case
from benchmark.contender import CHECK_LENGTH, Finding, check_close
from benchmark.contenders.attention_operation import Attend, AttentionContender, random_heads
from reformer_hf.ops.attention_window import AttentionWindow
from reformer_hf.ops.hashing import HashSettings
from reformer_hf.ops.lsh_attention import lsh_attention


def _attend(query_key: Tensor, value: Tensor, case: Case, seed: int, backend: str) -> Tensor:
    window = AttentionWindow(
        pattern="window",
        before=case.chunk_length,
        after=0,
        chunk_length=case.chunk_length,
        causal=True,
        exclude_self=True,
    )
    out, _ = lsh_attention(
        query_key, value, HashSettings(case.rounds, seed), window=window, backend=backend
    )
    return out


class ReformerHFAttention(AttentionContender):
    """``lsh_attention`` in the default pattern."""

    name = "reformer_hf"
    label = "reformer_hf"

    def attention(self, case: Case) -> Attend:
        """The operation with the backend of automatic choice."""
        return partial(_attend, case=case, seed=case.seed, backend="auto")

    def check(self, case: Case) -> list[Finding]:
        """Also that the backend in use computes what the reference computes."""
        findings = super().check(case)
        if not all(finding.passed for finding in findings if finding.required):
            return findings
        short = replace(case, length=CHECK_LENGTH - 3, batch=1, dtype="float32")
        results = []
        for backend in ("auto", "reference"):
            query_key, value, grad_out = random_heads(short, 3)
            query_key.requires_grad_()
            value.requires_grad_()
            out = _attend(query_key, value, case=short, seed=case.seed, backend=backend)
            grads = torch.autograd.grad(out, [query_key, value], grad_out)
            results.append((out.detach(), *grads))
        names = ("output", "query/key gradient", "value gradient")
        for name, actual, expected in zip(names, *results, strict=True):
            findings.append(check_close(f"{name} of the reference backend", actual, expected, 1e-4))
        return findings
