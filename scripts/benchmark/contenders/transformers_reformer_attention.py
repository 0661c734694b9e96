"""The LSH attention module of transformers' Reformer."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from benchmark.case import Case
from benchmark.contenders.attention_operation import Attend, AttentionContender
from benchmark.contenders.transformers_reformer_model import built_in_config


class _Given(nn.Module):
    """In place of a projection: hands out the heads that the benchmark made."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[B, N, H D]`` from heads ``[B, H, N, D]``; the argument is not looked at."""
        return hidden_states if self.heads is None else self.heads.transpose(1, 2).flatten(2)


class TransformersReformerAttention(AttentionContender):
    """``LSHSelfAttention`` without its two projections."""

    name = "transformers_reformer"
    label = "transformers' Reformer"
    must_be_causal = False

    def unavailable(self, case: Case) -> str | None:
        """It takes multiples of its chunk length only."""
        if case.length % case.chunk_length:
            return f"takes multiples of {case.chunk_length} tokens only"
        return super().unavailable(case)

    def attention(self, case: Case) -> Attend:
        """The module, fed with given heads."""
        module = LSHSelfAttention(built_in_config(case), layer_idx=0).to(case.device).train()
        query_key, value = _Given(), _Given()
        module.query_key, module.value = query_key, value

        def attend(query_key_heads: Tensor, value_heads: Tensor) -> Tensor:
            query_key.heads, value.heads = query_key_heads, value_heads
            merged: Tensor = module(value_heads.transpose(1, 2).flatten(2)).hidden_states
            query_key.heads = value.heads = None
            return merged.unflatten(-1, (case.num_heads, -1)).transpose(1, 2)

        return attend
