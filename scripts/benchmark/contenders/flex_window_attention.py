"""Sliding-window attention by PyTorch's FlexAttention: as many keys per query, but no search."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmark.case import Case
from benchmark.contenders.attention_operation import Attend, AttentionContender


class FlexWindowAttention(AttentionContender):
    """The last ``R C`` tokens: the number of tokens that LSH attention sees in all its rounds."""

    name = "flex_window"
    label = "sliding window (FlexAttention)"

    def unavailable(self, case: Case) -> str | None:
        """Its backward pass exists on GPUs only."""
        if case.device_type != "cuda":
            return "FlexAttention has a backward pass on GPUs only"
        return super().unavailable(case)

    def attention(self, case: Case) -> Attend:
        """The compiled operation with its block mask."""
        window = case.rounds * case.chunk_length

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (query - key <= window)

        mask = create_block_mask(visible, None, None, case.length, case.length, device=case.device)
        compiled = torch.compile(flex_attention, dynamic=False)

        def attend(query_key: Tensor, value: Tensor) -> Tensor:
            out: Tensor = compiled(query_key, query_key, value, block_mask=mask)
            return out

        return attend
