"""What a test and the processes that it launches build alike."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import reformer_hf
from tests.pretrained.conftest import WINDOW, tiny_llama, token_ids

ROWS = 2


def sparse_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = tiny_llama(attn_implementation="reformer")
    reformer_hf.configure_attention(model, local_window=WINDOW)
    return model


def training_rows() -> Tensor:
    return token_ids(120, ROWS)
