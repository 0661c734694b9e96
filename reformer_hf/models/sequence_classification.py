"""One prediction for a whole sequence: single-label, multi-label or regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.arguments import ReformerKwargs, for_the_model
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.inputs import real_tokens
from reformer_hf.models.losses import sequence_loss
from reformer_hf.models.model import ReformerModel, causality_under_encoder_head
from reformer_hf.ops.sequence_group import SequenceGroup, together


class ClassificationHead(nn.Module):
    """``W2 dropout(tanh(W1 dropout(x)))``."""

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__()
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.dense = nn.Linear(config.merged_size(), config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_labels]`` of ``[B, merged_size]``."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(x)))))


def pool(
    states: Tensor,
    attention_mask: Tensor | None,
    pooling: str,
    group: SequenceGroup | None = None,
) -> Tensor:
    """One vector per sequence: the mean of its real tokens, or its first real token.

    Args:
        states: ``[B, N, d]``.
        attention_mask: ``[B, N]``, or ``None`` if all tokens are real.
        pooling: ``"mean"`` or ``"first"``.
        group: who has the other tokens, where sequences are split.

    Returns:
        ``[B, d]``; zeros for the mean of a row without real tokens.
    """
    real = real_tokens(attention_mask, states)
    if pooling == "first":
        first = real.to(torch.int64).argmax(dim=1)
        chosen = states[torch.arange(states.shape[0], device=states.device), first]
        if group is None:
            return chosen
        # The first rank with a real token has it; if none has, the first position counts.
        having = group.gather(real.any(dim=1, keepdim=True)).to(torch.int64).argmax(dim=1)
        return group.sum(chosen * (having == group.rank).unsqueeze(-1))
    weight = real.to(states.dtype).unsqueeze(-1)
    total, count = (states * weight).sum(dim=1), weight.sum(dim=1)
    if group is not None:
        total, count = group.sum(total), group.sum(count)
    return total / count.clamp(min=1.0)


class ReformerForSequenceClassification(ReformerPreTrainedModel):
    """A bidirectional Reformer with a classification or regression head.

    In the ``chunk`` pattern ``config.is_decoder`` makes it causal, as in transformers.

    Args:
        config: the configuration; ``num_labels`` and ``problem_type`` as everywhere in
            transformers.
    """

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.reformer = ReformerModel(config, causality_under_encoder_head(config))
        self.classifier = ClassificationHead(config)
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
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        ``input_ids`` to ``inputs_embeds`` are the inputs of :meth:`ReformerModel.forward`.

        Args:
            labels: ``[B]`` classes of any integer type, or ``[B, num_labels]`` floats (several
                labels, from 0 to 1, or regression).
            **kwargs: :class:`~reformer_hf.models.arguments.ReformerKwargs`.

        Returns:
            ``loss``, ``logits`` ``[B, num_labels]``, ``hidden_states``, ``attentions``.

        Raises:
            ValueError: an input or labels of another shape, type or range, with the name.
        """
        out = self.reformer(
            input_ids, attention_mask, position_ids, inputs_embeds, **for_the_model(kwargs)
        )
        pooled = pool(
            *(out.last_hidden_state, attention_mask, self.config.classifier_pooling),
            group=self.sequence_group,
        )
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            with together(self.sequence_group):
                loss = sequence_loss(self.config, logits, labels, kwargs.get("num_items_in_batch"))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
