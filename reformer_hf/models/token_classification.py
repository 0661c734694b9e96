"""One prediction for every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import can_return_tuple

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.checks import check_shape
from reformer_hf.models.losses import NumItems, token_loss
from reformer_hf.models.model import ReformerModel


class ReformerForTokenClassification(ReformerPreTrainedModel):
    """A bidirectional Reformer with a classifier on every token.

    Args:
        config: the configuration.
    """

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config, causal=False)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.merged_size(), config.num_labels or 1)
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
    ) -> TokenClassifierOutput:
        """Classify tokens.

        Args:
            input_ids: see :meth:`ReformerModel.forward`, as for all arguments not listed here.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: ``[B, N]`` int64, -100 where there is nothing to predict.
            num_hashes: see there.
            output_hidden_states: see there.
            output_attentions: see there.
            num_items_in_batch: number of labels to divide the loss by.
            **kwargs: accepted for compatibility.

        Returns:
            ``loss``, ``logits`` ``[B, N, num_labels]``, ``hidden_states``, ``attentions``.
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
        logits = self.classifier(self.dropout(out.last_hidden_state))
        loss = None
        if labels is not None:
            check_shape(labels, logits.shape[:2], "labels")
            loss = token_loss(logits, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
