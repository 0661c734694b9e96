"""Extractive question answering: the span of the context that answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.arguments import ReformerKwargs, for_the_model
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.inputs import real_tokens
from reformer_hf.models.losses import span_loss
from reformer_hf.models.model import ReformerModel, causality_under_encoder_head
from reformer_hf.ops.sequence_group import together


class ReformerForQuestionAnswering(ReformerPreTrainedModel):
    """A bidirectional Reformer that scores every token as start and end of the answer.

    In the ``chunk`` pattern ``config.is_decoder`` makes it causal, as in transformers.

    Args:
        config: the configuration.
    """

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.reformer = ReformerModel(config, causality_under_encoder_head(config))
        self.qa_outputs = nn.Linear(config.merged_size(), 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Unpack[ReformerKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Score spans; padding gets the lowest score, so that no probability goes to it.

        ``input_ids`` to ``inputs_embeds`` are the inputs of :meth:`ReformerModel.forward`.

        Args:
            start_positions: ``[B]`` int64; a position outside the sequence, or on padding, has
                no loss.
            end_positions: ``[B]`` int64, in the same way.
            **kwargs: :class:`~reformer_hf.models.arguments.ReformerKwargs`.

        Returns:
            ``loss``, ``start_logits`` and ``end_logits`` ``[B, N]`` (of whole rows, on every rank
            that shares them), ``hidden_states``, ``attentions``.

        Raises:
            ValueError: an input of another shape, type or range, with the name; one end of the
                spans without the other.
        """
        if (start_positions is None) != (end_positions is None):
            raise ValueError(
                "`start_positions` and `end_positions` must be given together, got only "
                f"`{'end' if start_positions is None else 'start'}_positions`"
            )
        out = self.reformer(
            input_ids, attention_mask, position_ids, inputs_embeds, **for_the_model(kwargs)
        )
        logits = self.qa_outputs(out.last_hidden_state)
        real = real_tokens(attention_mask, logits).to(logits.device)
        logits = logits.masked_fill(~real.unsqueeze(-1), torch.finfo(logits.dtype).min)
        group = self.sequence_group
        if group is not None:
            # An answer is looked for in whole rows.
            logits, real = group.gather(logits), group.gather(real)
        start_logits, end_logits = (x.squeeze(-1).contiguous() for x in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            num_items = kwargs.get("num_items_in_batch")
            with together(group):
                loss = span_loss(
                    start_logits, end_logits, start_positions, end_positions, real, num_items
                )
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
