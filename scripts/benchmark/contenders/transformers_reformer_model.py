"""The Reformer built into transformers."""

from __future__ import annotations

from typing import Any

import transformers
from torch import Tensor, nn
from transformers import ReformerConfig, ReformerModelWithLMHead

from benchmark.case import Case
from benchmark.contenders.language_model import LanguageModelContender, common_fields


def built_in_config(case: Case) -> ReformerConfig:
    """The configuration of the common model.

    Training demands that the axial shape multiplies to the length exactly. The number of buckets is
    left for the model to choose, as its documentation recommends.
    """
    transformers.logging.set_verbosity_error()  # it warns when it chooses
    rows = 1 << (case.length.bit_length() // 2)
    while case.length % rows:
        rows //= 2
    first_axis = case.hidden_size // 4
    sliceable = case.length % case.feed_forward_slice == 0
    settings: dict[str, Any] = {
        **common_fields(case),
        "chunk_size_feed_forward": case.feed_forward_slice if sliceable else 0,
        "hidden_act": "gelu",
        "num_buckets": None,
        "lsh_num_chunks_before": 1,
        "lsh_num_chunks_after": 0,
        "axial_pos_shape": (rows, case.length // rows),
        "axial_pos_embds_dim": (first_axis, case.hidden_size - first_axis),
        "is_decoder": True,
    }
    return ReformerConfig(**settings)


class TransformersReformerModel(LanguageModelContender):
    """``ReformerModelWithLMHead``. Its chunk borders depend on later tokens."""

    name = "transformers_reformer"
    label = "transformers' Reformer"
    recomputes_by_itself = True
    must_be_causal = False
    unused = ("lm_head.bias",)

    def unavailable(self, case: Case) -> str | None:
        """In training it takes multiples of its chunk length only."""
        if case.length % case.chunk_length:
            return f"trains on multiples of {case.chunk_length} tokens only"
        return super().unavailable(case)

    def make(self, case: Case) -> nn.Module:
        """The model."""
        model: nn.Module = ReformerModelWithLMHead(built_in_config(case))
        return model

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = model(tokens).logits
        return out
