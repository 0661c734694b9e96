"""The Reformer of lucidrains' reformer-pytorch."""

from __future__ import annotations

from torch import Tensor, nn

from benchmark.case import Case
from benchmark.contenders.language_model import LanguageModelContender

PACKAGE = "reformer-pytorch==1.4.4"


class ReformerPytorchModel(LanguageModelContender):
    """``ReformerLM``."""

    name = "reformer_pytorch"
    label = "reformer-pytorch"
    package = PACKAGE
    recomputes_by_itself = True
    must_be_causal = False

    def unavailable(self, case: Case) -> str | None:
        """It takes whole pairs of chunks only."""
        if case.length % (2 * case.chunk_length):
            return f"takes multiples of {2 * case.chunk_length} tokens only"
        if case.feed_forward_size % case.hidden_size:
            return "its feed-forward size is a multiple of the hidden size"
        return super().unavailable(case)

    def make(self, case: Case) -> nn.Module:
        """The model."""
        from reformer_pytorch import ReformerLM

        model: nn.Module = ReformerLM(
            num_tokens=case.vocab_size,
            dim=case.hidden_size,
            depth=case.depth,
            max_seq_len=case.length,
            heads=case.num_heads,
            dim_head=case.head_size,
            bucket_size=case.chunk_length,
            n_hashes=case.rounds,
            ff_chunks=-(-case.length // case.feed_forward_slice),
            ff_mult=case.feed_forward_size // case.hidden_size,
            causal=True,
            axial_position_emb=True,
            axial_position_shape=(case.length // case.chunk_length, case.chunk_length),
        )
        return model

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = model(tokens)
        return out
