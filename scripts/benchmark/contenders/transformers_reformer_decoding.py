"""The Reformer built into transformers, with its cache of buckets and hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import ReformerModelWithLMHead

from benchmark.case import Case
from benchmark.contenders.decoding import SPARE, DecodingContender, PrefillContender
from benchmark.contenders.transformers_reformer_model import built_in_config


class TransformersReformerDecoding(DecodingContender):
    """``ReformerModelWithLMHead``; what it says with its cache is not what it says without."""

    name = "transformers_reformer"
    label = "transformers' Reformer"
    must_equal_whole_pass = False

    def make(self, case: Case) -> nn.Module:
        """The model."""
        model: nn.Module = ReformerModelWithLMHead(
            built_in_config(replace(case, length=case.length + SPARE))
        )
        return model

    def read(self, model: nn.Module, tokens: Tensor, length: int) -> tuple[Tensor, Any]:
        """One pass that fills the cache; it has no way to leave out logits."""
        out = model(tokens, use_cache=True)
        return out.logits[:, -1], out.past_buckets_states

    def next(self, model: nn.Module, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """A step."""
        out = model(token, past_buckets_states=cache, use_cache=True)
        return out.logits[:, -1], out.past_buckets_states

    def whole(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """One pass."""
        logits: Tensor = model(tokens, use_cache=False).logits
        return logits

    def cache_bytes(self, cache: Any) -> int:
        """Hidden states and buckets."""
        return sum(x.nbytes for x in (*cache.states_cache, *cache.buckets_cache))


class TransformersReformerPrefill(PrefillContender, TransformersReformerDecoding):
    """The context."""
