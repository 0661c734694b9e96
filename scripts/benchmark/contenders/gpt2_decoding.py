"""A GPT-2 of the same size with its cache of keys and values: full attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from benchmark.case import Case
from benchmark.contenders.decoding import SPARE, DecodingContender, PrefillContender


class GPT2Decoding(DecodingContender):
    """``GPT2LMHeadModel`` with a ``DynamicCache``."""

    name = "gpt2"
    label = "GPT-2"

    def make(self, case: Case) -> nn.Module:
        """The model."""
        config = GPT2Config(
            vocab_size=case.vocab_size,
            n_positions=case.length + SPARE,
            n_embd=case.hidden_size,
            n_layer=case.depth,
            n_head=case.num_heads,
            n_inner=case.feed_forward_size,
            bos_token_id=None,
            eos_token_id=None,
        )
        model: nn.Module = GPT2LMHeadModel(config)
        return model

    def read(self, model: nn.Module, tokens: Tensor, length: int) -> tuple[Tensor, Any]:
        """One pass that fills the cache."""
        cache = DynamicCache()
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], cache

    def next(self, model: nn.Module, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """A step."""
        return model(token, past_key_values=cache, use_cache=True).logits[:, -1], cache

    def whole(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """One pass."""
        logits: Tensor = model(tokens, use_cache=False).logits
        return logits

    def cache_bytes(self, cache: Any) -> int:
        """Keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class GPT2Prefill(PrefillContender, GPT2Decoding):
    """The context."""
