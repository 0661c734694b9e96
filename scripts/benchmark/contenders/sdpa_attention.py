"""PyTorch's causal full attention."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmark.case import Case
from benchmark.contender import CHECK_LENGTH, Finding, check_close
from benchmark.contenders.attention_operation import Attend, AttentionContender, random_heads


def _attend(query_key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query_key, query_key, value, is_causal=True)


class SDPAAttention(AttentionContender):
    """``scaled_dot_product_attention``, which is FlashAttention where there is one."""

    name = "sdpa"
    label = "full attention"

    def attention(self, case: Case) -> Attend:
        """The operation."""
        return _attend

    def check(self, case: Case) -> list[Finding]:
        """Also that it is softmax attention."""
        query_key, value = random_heads(
            replace(case, length=CHECK_LENGTH, batch=1, dtype="float32"), 2
        )
        scores = query_key.double() @ query_key.double().transpose(2, 3) * case.head_size**-0.5
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        expected = scores.masked_fill(future, -torch.inf).softmax(dim=-1) @ value.double()
        actual = _attend(query_key, value)
        return [
            *super().check(case),
            check_close("softmax written out", actual, expected, 1e-4),
        ]
