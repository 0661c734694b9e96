"""The bare Reformer: embeddings and a stack of layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.layers.embeddings import PositionedInputs
from reformer_hf.layers.stack import ReformerStack
from reformer_hf.models.arguments import OutputKwargs, wanted_outputs
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.caching import find_cache
from reformer_hf.models.inputs import InputSide, prepare_inputs


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
        shape = self._resize_positions(self.embeddings, new_num_position_embeddings)
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
        *,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        planned_lengths: int | Sequence[int] | None = None,
        **kwargs: Unpack[OutputKwargs],
    ) -> BaseModelOutputWithPast:
        """Encode sequences.

        Args:
            input_ids: ``[B, N]`` token ids of any integer type.
            attention_mask: ``[B, N]`` of any type, 1 for real tokens and 0 for padding, on either
                side; with earlier tokens in a cache, of the new tokens or of all,
                ``[B, past + N]``.
            position_ids: ``[B or 1, N]`` of any integer type; default: the number of real tokens
                before each. A row is one text, so its real tokens are numbered upwards (or all
                downwards).
            inputs_embeds: ``[B, N, d]`` token vectors in place of ``input_ids``.
            num_hashes: hash rounds of this call, at least 1; default: ``config.num_hashes``.
            past_key_values: a :class:`~reformer_hf.ReformerCache`, empty or with earlier tokens, to
                which the inputs are added (causal models only). No gradients reach earlier tokens.
            use_cache: return a cache of the inputs, as ``past_key_values``; default: only if one is
                given. A model that reads both sides has none.
            planned_lengths: tokens that each row, or all alike, will have in the end. Numbers of
                buckets that are not configured are chosen for these lengths; default: for those of
                the inputs.
            **kwargs: :class:`~reformer_hf.models.arguments.OutputKwargs`.

        Returns:
            ``last_hidden_state`` ``[B, N, d]`` (twice the features with ``stream_merge="concat"``),
            ``past_key_values``, ``hidden_states`` and ``attentions``.

        Raises:
            ValueError: an input of another shape, type or range, with its name; a cache of another
                model, batch size or device.
        """
        config = self.config
        side = InputSide(
            *(config, self.training, self.word_embeddings, self.embeddings),
            group=self.sequence_group,
            rotary=self.stack.rotary_dtype,
        )
        outputs = wanted_outputs(kwargs, config)
        cache = find_cache(past_key_values, use_cache, config, planned_lengths)
        inputs = prepare_inputs(
            side,
            input_ids,
            inputs_embeds,
            attention_mask,
            position_ids,
            cache,
            num_hashes,
            planned_lengths,
        )
        with inputs.context.randomness(inputs.vectors.device):
            embedded = self.embeddings(inputs.vectors, inputs.positions)
            out = self.stack(embedded, inputs.context, **outputs)
        if cache is not None:
            cache.close()
        return BaseModelOutputWithPast(
            last_hidden_state=out.last_hidden_state,
            past_key_values=cache,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


def causality_under_encoder_head(config: ReformerConfig) -> bool | None:
    """What a head that reads both sides passes as ``causal``.

    ``False``; but in the ``chunk`` pattern ``None``, as ``config.is_decoder`` says. That is what
    transformers' heads do, so weights were trained that way.
    """
    return None if config.attention_pattern == "chunk" else False
