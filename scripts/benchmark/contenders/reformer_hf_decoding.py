"""Our causal language model with its generation cache."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from benchmark.case import Case
from benchmark.contenders.decoding import SPARE, DecodingContender, PrefillContender
from benchmark.contenders.reformer_hf_model import model_config
from reformer_hf import ReformerCache, ReformerForCausalLM


class ReformerHFDecoding(DecodingContender):
    """``ReformerForCausalLM`` with a ``ReformerCache``."""

    name = "reformer_hf"
    label = "reformer_hf"

    def make(self, case: Case) -> nn.Module:
        """The model."""
        return ReformerForCausalLM(model_config(case, max_position_embeddings=case.length + SPARE))

    def read(self, model: Any, tokens: Tensor, length: int) -> tuple[Tensor, Any]:
        """One pass that fills the cache."""
        cache = ReformerCache(model.config, planned_lengths=length)
        out = model(tokens, past_key_values=cache, logits_to_keep=1)
        return out.logits[:, -1], cache

    def next(self, model: nn.Module, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """A step."""
        return model(token, past_key_values=cache).logits[:, -1], cache

    def whole(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """One pass, with the buckets of the same length."""
        logits: Tensor = model(tokens, planned_lengths=tokens.shape[1]).logits
        return logits

    def cache_bytes(self, cache: Any) -> int:
        """Keys, values, buckets and rings."""
        size: int = cache.nbytes()
        return size


class ReformerHFPrefill(PrefillContender, ReformerHFDecoding):
    """The context."""
