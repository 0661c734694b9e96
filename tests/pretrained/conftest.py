"""Tiny models with random weights, as users would open pretrained ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

# Tokens beyond which calls are sparse in these tests.
WINDOW = 32


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 99,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "pad_token_id": 0, **changes}))


def tiny_bart() -> BartForConditionalGeneration:
    config = BartConfig(
        vocab_size=99,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=512,
        forced_eos_token_id=None,
        dropout=0.0,
        pad_token_id=1,
    )
    return BartForConditionalGeneration(config)


def tiny_bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "bart": tiny_bart,
    "bert": tiny_bert,
}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A decoder, an encoder-decoder and an encoder, in full attention."""
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """A decoder with grouped-query attention, in full attention."""
    torch.manual_seed(0)
    return tiny_llama().eval()


def token_ids(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
