"""A training step of transformers' Llama at SmolLM2-135M's sizes, in full and in sparse attention.

Weights are random: they change neither time nor memory. The loss is computed without logits in
both, or at 16,384 tokens and 49,152 words they would be all that is measured.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import reformer_hf
from benchmark.case import Case
from benchmark.contender import Finding
from benchmark.contenders.hybrid_attention import GROUP, LOCAL_WINDOW, SINKS
from benchmark.contenders.language_model import LanguageModelContender
from reformer_hf.pretrained.language_model_loss import causal_lm_loss


class FullLlama(LanguageModelContender):
    """``attn_implementation="sdpa"``."""

    name = "sdpa"
    label = "full attention"
    implementation: ClassVar[str] = "sdpa"

    def unavailable(self, case: Case) -> str | None:
        """Heads that do not divide into groups."""
        if case.num_heads % GROUP:
            return f"needs a number of heads divisible by {GROUP}"
        return super().unavailable(case)

    def make(self, case: Case) -> nn.Module:
        """The model of transformers."""
        config = LlamaConfig(
            vocab_size=case.vocab_size,
            hidden_size=case.hidden_size,
            intermediate_size=case.feed_forward_size,
            num_hidden_layers=case.depth,
            num_attention_heads=case.num_heads,
            num_key_value_heads=case.num_heads // GROUP,
            head_dim=case.head_size,
            max_position_embeddings=case.length,
            tie_word_embeddings=True,
            attn_implementation=self.implementation,
        )
        model = LlamaForCausalLM(config)
        reformer_hf.configure_attention(
            model,
            local_window=LOCAL_WINDOW,
            sink_tokens=SINKS,
            num_hashes=case.rounds,
            bucket_window=case.chunk_length,
        )
        return model

    def logits(self, model: Any, tokens: Tensor) -> Tensor:
        """Logits, for the check of causality."""
        return model(input_ids=tokens, use_cache=False).logits

    def loss(self, model: Any, tokens: Tensor) -> Tensor:
        """The loss without logits."""
        return causal_lm_loss(model, tokens)


class SparseLlama(FullLlama):
    """``attn_implementation="reformer"``."""

    name = "reformer_hf"
    label = "reformer_hf"
    implementation: ClassVar[str] = "reformer"

    @torch.no_grad()
    def properties(self, case: Case) -> list[Finding]:
        """Also that the attention is sparse at all."""
        model = self.make_seeded(case).eval()
        tokens = torch.arange(case.length, device=case.device).unsqueeze(0) % case.vocab_size
        sparse = self.logits(model, tokens)
        model.set_attn_implementation("sdpa")  # type: ignore[operator]
        moved = float((sparse - self.logits(model, tokens)).abs().max())
        finding = Finding(
            "is sparse", moved > 1e-6, f"logits differ from full attention by {moved:.1e}"
        )
        return [*super().properties(case), finding]


class ChosenLayersLlama(SparseLlama):
    """Many rounds and a wider window, as for layers chosen by `diagnose --by_loss`.

    32 rounds in one of three layers, sinks and a local window of 512 tokens (of a text shorter than
    1,024: half of it) in the others.
    """

    name = "reformer_hf_third"
    label = "reformer_hf, 32 rounds in a third of the layers"

    def make(self, case: Case) -> nn.Module:
        """The model of transformers, with rounds in few layers."""
        model: Any = super().make(case)
        local = [layer for layer in range(case.depth) if layer % 3 != 1]
        window = min(2 * LOCAL_WINDOW, case.length // 2)
        reformer_hf.configure_attention(
            model, local_window=window, num_hashes=32, local_layers=local
        )
        return model
