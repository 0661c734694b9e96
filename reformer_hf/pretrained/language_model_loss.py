"""The loss of a pretrained language model without its logits.

At 8,192 tokens and a vocabulary of 49,152 words logits are 1.6 GB: here the head is computed for a
slice of the positions at a time, in training too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reformer_hf.ops.cross_entropy import linear_cross_entropy

_CHUNK = 1024


def _decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The model without its head, and the head.

    Raises:
        ValueError: a model whose head is no plain linear layer over its last hidden state.
    """
    decoder, head = model.base_model, model.get_output_embeddings()
    if decoder is model or not isinstance(head, torch.nn.Linear):
        raise ValueError(
            "`model` must be a causal language model with a linear head, "
            f"got {type(model).__name__}"
        )
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise ValueError(f"`model` ({type(model).__name__}) changes its logits by `{name}`")
    return decoder, head


def causal_lm_loss(
    model: PreTrainedModel, input_ids: Tensor, *, chunk_size: int = _CHUNK
) -> Tensor:
    """Mean negative log-likelihood of every token given those before it, in nats.

    Args:
        model: a causal language model of transformers with a linear head.
        input_ids: ``[B, N]`` int64, without padding, ``N >= 2``.
        chunk_size: positions whose logits are formed at a time.

    Raises:
        ValueError: another kind of model, or too few tokens.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] < 2:
        raise ValueError(
            f"`input_ids` must be [batch, at least 2 tokens], got {tuple(input_ids.shape)}"
        )
    decoder, head = _decoder_and_head(model)
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    labels = input_ids[:, 1:].flatten()
    total = linear_cross_entropy(hidden, head.weight, head.bias, labels, chunk_size=chunk_size)
    return total / labels.numel()


@torch.no_grad()
def token_losses(model: PreTrainedModel, input_ids: Tensor, *, chunk_size: int = _CHUNK) -> Tensor:
    """The same for each token: ``[B, N - 1]`` fp32."""
    decoder, head = _decoder_and_head(model)
    hidden = decoder(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    parts = [
        torch.nn.functional.cross_entropy(
            head(hidden[:, start : start + chunk_size]).float().flatten(0, 1),
            input_ids[:, 1:][:, start : start + chunk_size].flatten(),
            reduction="none",
        ).view(input_ids.shape[0], -1)
        for start in range(0, hidden.shape[1], chunk_size)
    ]
    return torch.cat(parts, dim=1)
