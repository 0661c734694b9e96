"""A plain transformer with PyTorch's full attention: what a Reformer has to beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmark.case import Case
from benchmark.contenders.language_model import LanguageModelContender


class _Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        features = case.num_heads * case.head_size
        self.num_heads = case.num_heads
        self.attention_norm = nn.LayerNorm(case.hidden_size)
        self.query_key_value = nn.Linear(case.hidden_size, 3 * features, bias=False)
        self.output = nn.Linear(features, case.hidden_size, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(case.hidden_size),
            nn.Linear(case.hidden_size, case.feed_forward_size),
            nn.GELU(),
            nn.Linear(case.feed_forward_size, case.hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, d]`` to ``[B, N, d]``."""
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.feed_forward(x)
        return out


def _sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions ``[N, d]``, which need neither gradients nor optimizer state."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]


class _Transformer(nn.Module):
    """Pre-LN transformer (Xiong et al. 2020, arXiv:2002.04745) with a tied head."""

    positions: Tensor

    def __init__(self, case: Case, checkpointed: bool) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.embedding = nn.Embedding(case.vocab_size, case.hidden_size)
        self.register_buffer("positions", _sinusoids(case.length, case.hidden_size))
        self.blocks = nn.ModuleList(_Block(case) for _ in range(case.depth))
        self.norm = nn.LayerNorm(case.hidden_size)
        self.head = nn.Linear(case.hidden_size, case.vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits ``[B, N, V]``."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            if self.checkpointed and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


class SDPAModel(LanguageModelContender):
    """``scaled_dot_product_attention``, which is FlashAttention where there is one."""

    name = "sdpa"
    label = "transformer, full attention"
    checkpointed = False

    def make(self, case: Case) -> nn.Module:
        """The model."""
        return _Transformer(case, self.checkpointed)

    def logits(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = model(tokens)
        return out


class SDPACheckpointModel(SDPAModel):
    """The same with gradient checkpointing of every layer."""

    name = "sdpa_checkpoint"
    label = "transformer, full attention, checkpointed"
    checkpointed = True
