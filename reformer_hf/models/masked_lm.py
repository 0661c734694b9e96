"""Masked language modelling: predict tokens from both sides."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.arguments import ReformerKwargs, for_the_model
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.losses import vocabulary_head
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.padding import real_by_labels


class ReformerForMaskedLM(ReformerPreTrainedModel):
    """A bidirectional Reformer with a projection to the vocabulary.

    Args:
        config: the configuration; ``config.is_decoder`` becomes false.
    """

    _tied_weights_keys = {"lm_head.weight": "reformer.word_embeddings.weight"}
    token_arguments = (*ReformerPreTrainedModel.token_arguments, "labels")

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
        **kwargs: Unpack[ReformerKwargs],
    ) -> MaskedLMOutput:
        """Predict the token at every position.

        ``input_ids`` to ``inputs_embeds`` are the inputs of :meth:`ReformerModel.forward`.

        Args:
            labels: ``[B, N]`` of any integer type, the original tokens where something is to be
                predicted and -100 elsewhere. Without a mask, padding tokens at either end of a row
                are padding where they have no label.
            **kwargs: :class:`~reformer_hf.models.arguments.ReformerKwargs`.

        Returns:
            ``loss``, ``logits`` ``[B, N, V]``, ``hidden_states``, ``attentions``. In training with
            labels and ``config.chunk_size_lm_head > 0`` only labelled positions are computed and
            the logits are ``None``.

        Raises:
            ValueError: an input or labels of another shape, type or range, with the name.
        """
        group = self.sequence_group
        if attention_mask is None:
            attention_mask = real_by_labels(input_ids, labels, self.config.pad_token_id, group)
        out = self.reformer(
            input_ids, attention_mask, position_ids, inputs_embeds, **for_the_model(kwargs)
        )
        chunk_size = self.config.chunk_size_lm_head if self.training else 0
        num_items = kwargs.get("num_items_in_batch")
        vocab_size, hidden = self.config.vocab_size, out.last_hidden_state
        loss, logits = vocabulary_head(
            hidden, self.lm_head, labels, vocab_size, chunk_size, num_items, group
        )
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
