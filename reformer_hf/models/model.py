"""The bare Reformer: embeddings and a stack of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.context import ForwardContext, draw_seeds
from reformer_hf.layers.embeddings import PositionedInputs
from reformer_hf.layers.stack import ReformerStack
from reformer_hf.models.base import (
    ReformerPreTrainedModel,
    check_num_hashes,
    embed_tokens,
    read_padding,
    read_positions,
    resized_shape,
)


class ReformerModel(ReformerPreTrainedModel):
    """Token ids in, hidden states out.

    Args:
        config: the configuration.
        causal: tokens do not see later tokens; ``None``: as ``config.is_decoder`` says. A model
            with a head passes what it needs, and that is recorded in ``config.is_decoder``.

    Example:
        >>> import torch
        >>> from reformer_hf import ReformerConfig, ReformerModel
        >>> model = ReformerModel(ReformerConfig(hidden_size=64, num_attention_heads=2)).eval()
        >>> model(torch.tensor([[5, 6, 7]])).last_hidden_state.shape
        torch.Size([1, 3, 64])
    """

    def __init__(self, config: ReformerConfig, causal: bool | None = None) -> None:
        super().__init__(config)
        if causal is not None:
            config.is_decoder = causal
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embeddings = PositionedInputs(
            config, config.position_shape(), config.max_position_embeddings
        )
        self.stack = ReformerStack(config, list(config.attn_layers), causal=config.is_decoder)
        self.post_init()

    def get_position_embeddings(self) -> nn.Module:
        """The table of position embeddings."""
        return self.embeddings.position_embeddings

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest sequence; positions that remain keep their embeddings."""
        std = self.config.axial_norm_std
        shape = resized_shape(self.embeddings, new_num_position_embeddings, std)
        self.config.axial_pos_shape = shape
        self.config.max_position_embeddings = new_num_position_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encode sequences.

        Args:
            input_ids: ``[B, N]`` int64 token ids.
            attention_mask: ``[B, N]``, 1 for real tokens and 0 for padding, on either side.
            position_ids: ``[B, N]`` int64; default: the number of real tokens before each token.
            inputs_embeds: ``[B, N, d]`` token vectors in place of ``input_ids``.
            num_hashes: hash rounds of this call; default: ``config.num_hashes``.
            output_hidden_states: also return the merged streams before, between and after layers.
            output_attentions: also return attention weights, for short sequences.
            **kwargs: accepted for compatibility (``return_dict``, ``use_cache``).

        Returns:
            ``last_hidden_state`` ``[B, N, d]`` (twice the features with ``stream_merge="concat"``),
            ``hidden_states`` and ``attentions``.

        Raises:
            ValueError: see :func:`~reformer_hf.models.base.embed_tokens` and its neighbours.
        """
        config = self.config
        check_num_hashes(num_hashes)
        vectors = embed_tokens(input_ids, inputs_embeds, self.word_embeddings)
        padding = read_padding(attention_mask, vectors, "attention_mask")
        table = self.embeddings.position_embeddings
        num_positions = min(table.num_positions, config.max_position_embeddings)
        positions = read_positions(position_ids, padding, vectors, num_positions)
        hash_seed, dropout_seed = draw_seeds(config, self.training)
        out = self.stack(
            self.embeddings(vectors, positions),
            ForwardContext(padding, hash_seed, dropout_seed, num_hashes=num_hashes),
            output_hidden_states=flag(output_hidden_states, config.output_hidden_states),
            output_attentions=flag(output_attentions, config.output_attentions),
        )
        return BaseModelOutput(
            last_hidden_state=out.last_hidden_state,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


def causality_under_encoder_head(config: ReformerConfig) -> bool | None:
    """What a head that reads both sides passes as ``causal``.

    ``False``; but in the ``chunk`` pattern ``None``, as ``config.is_decoder`` says. That is what
    transformers' heads do, so weights were trained that way.
    """
    return None if config.attention_pattern == "chunk" else False


def flag(value: bool | None, default: bool | None) -> bool:
    """An optional argument, or the configuration's value if it was not given."""
    return bool(default if value is None else value)


def mask_of(attention_mask: Tensor | None, states: Tensor) -> Tensor:
    """``[B, N]`` bool: which states belong to real tokens."""
    if attention_mask is None:
        return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return attention_mask != 0
