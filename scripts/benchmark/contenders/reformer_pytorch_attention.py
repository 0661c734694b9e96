"""The LSH attention of lucidrains' reformer-pytorch."""

from __future__ import annotations

from torch import Tensor

from benchmark.case import Case
from benchmark.contenders.attention_operation import Attend, AttentionContender
from benchmark.contenders.reformer_pytorch_model import PACKAGE


class ReformerPytorchAttention(AttentionContender):
    """``LSHAttention``, which takes heads as rows of a batch."""

    name = "reformer_pytorch"
    label = "reformer-pytorch"
    package = PACKAGE
    must_be_causal = False

    def unavailable(self, case: Case) -> str | None:
        """It takes whole pairs of chunks only."""
        if case.length % (2 * case.chunk_length):
            return f"takes multiples of {2 * case.chunk_length} tokens only"
        return super().unavailable(case)

    def attention(self, case: Case) -> Attend:
        """The operation."""
        from reformer_pytorch import LSHAttention

        module = LSHAttention(bucket_size=case.chunk_length, n_hashes=case.rounds, causal=True)
        module = module.to(case.device).train()

        def attend(query_key: Tensor, value: Tensor) -> Tensor:
            out: Tensor = module(query_key.flatten(0, 1), value.flatten(0, 1))[0]
            return out.unflatten(0, query_key.shape[:2])

        return attend
