"""Masked language modelling: predict tokens from both sides."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.losses import NumItems, vocabulary_head
from reformer_hf.models.model import ReformerModel


class ReformerForMaskedLM(ReformerPreTrainedModel):
    """A bidirectional Reformer with a projection to the vocabulary.

    Args:
        config: the configuration; ``config.is_decoder`` becomes false.
    """

    _tied_weights_keys = {"lm_head.weight": "reformer.word_embeddings.weight"}

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.reformer = ReformerModel(config, causal=False)
        self.lm_head = nn.Linear(config.merged_size(), config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_hashes: int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: NumItems = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict the token at every position.

        Args:
            input_ids: see :meth:`ReformerModel.forward`, as for all arguments not listed here.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: ``[B, N]`` int64, the original tokens where something is to be predicted and
                -100 elsewhere.
            num_hashes: see there.
            output_hidden_states: see there.
            output_attentions: see there.
            num_items_in_batch: number of labels to divide the loss by.
            **kwargs: accepted for compatibility.

        Returns:
            ``loss``, ``logits`` ``[B, N, V]``, ``hidden_states``, ``attentions``. In training with
            labels and ``config.chunk_size_lm_head > 0`` only labelled positions are computed and
            the logits are ``None``.
        """
        out = self.reformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        chunk_size = self.config.chunk_size_lm_head if self.training else 0
        loss, logits = vocabulary_head(
            out.last_hidden_state, self.lm_head, labels, chunk_size, num_items_in_batch
        )
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
