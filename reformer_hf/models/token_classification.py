"""One prediction for every token."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.arguments import ReformerKwargs, for_the_model
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.losses import token_loss
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.padding import real_by_labels


class ReformerForTokenClassification(ReformerPreTrainedModel):
    """A bidirectional Reformer with a classifier on every token.

    Args:
        config: the configuration.
    """

    token_arguments = (*ReformerPreTrainedModel.token_arguments, "labels")

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config, causal=False)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.merged_size(), config.num_labels)
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
    ) -> TokenClassifierOutput:
        """Classify tokens.

        ``input_ids`` to ``inputs_embeds`` are the inputs of :meth:`ReformerModel.forward`.

        Args:
            labels: ``[B, N]`` of any integer type, -100 where there is nothing to predict. Without
                a mask, padding tokens at either end of a row are padding where they have no label.
            **kwargs: :class:`~reformer_hf.models.arguments.ReformerKwargs`.

        Returns:
            ``loss``, ``logits`` ``[B, N, num_labels]``, ``hidden_states``, ``attentions``.

        Raises:
            ValueError: an input or labels of another shape, type or range, with the name.
        """
        group = self.sequence_group
        if attention_mask is None:
            attention_mask = real_by_labels(input_ids, labels, self.config.pad_token_id, group)
        out = self.reformer(
            input_ids, attention_mask, position_ids, inputs_embeds, **for_the_model(kwargs)
        )
        logits = self.classifier(self.dropout(out.last_hidden_state))
        loss = None
        if labels is not None:
            loss = token_loss(logits, labels, kwargs.get("num_items_in_batch"), group)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
