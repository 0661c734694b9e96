"""Language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.checks import check_shape
from reformer_hf.models.generation import ReformerGenerationMixin
from reformer_hf.models.inputs import real_tokens
from reformer_hf.models.losses import NumItems, shift_left, vocabulary_head
from reformer_hf.models.model import ReformerModel
from reformer_hf.ops.cross_entropy import IGNORE_INDEX


class ReformerForCausalLM(ReformerGenerationMixin, ReformerPreTrainedModel):
    """A causal Reformer with a projection to the vocabulary.

    Args:
        config: the configuration; ``config.is_decoder`` becomes true.
    """

    _tied_weights_keys = {"lm_head.weight": "reformer.word_embeddings.weight"}

    def __init__(self, config: ReformerConfig) -> None:
        super().__init__(config)
        self.reformer = ReformerModel(config, causal=True)
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
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: NumItems = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        planned_lengths: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        Args:
            input_ids: see :meth:`ReformerModel.forward`, as for all arguments not listed here.
            attention_mask: see there.
            position_ids: see there.
            inputs_embeds: see there.
            labels: ``[B, N]`` int64, usually ``input_ids``; they are shifted here, and -100 is
                skipped.
            num_hashes: see there.
            output_hidden_states: see there.
            output_attentions: see there.
            logits_to_keep: compute logits of only the last so many positions (0: all), or of the
                positions of a 1-D index tensor.
            num_items_in_batch: number of labels to divide the loss by.
            past_key_values: see there.
            use_cache: see there.
            planned_lengths: see there.
            **kwargs: accepted for compatibility. ``shift_labels`` ``[B, N]`` int64, the token that
                every position is to predict, stands in for ``labels``: where a sequence is split
                among processes, a shift would lose its ends. (`Trainer` takes every argument whose
                name has "label" in it for one that the data must have.)

        Returns:
            ``loss``, ``logits`` ``[B, N, V]``, ``past_key_values``, ``hidden_states``,
            ``attentions``. In training with labels and ``config.chunk_size_lm_head > 0`` the logits
            are never formed and ``None``.
        """
        out = self.reformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            num_hashes=num_hashes,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            past_key_values=past_key_values,
            use_cache=use_cache,
            planned_lengths=planned_lengths,
            return_dict=True,
        )
        hidden = out.last_hidden_state
        if kwargs.get("shift_labels") is not None:
            labels = kwargs["shift_labels"]
        elif labels is not None:
            check_shape(labels, hidden.shape[:2], "labels")
            labels = shift_left(labels)
            if attention_mask is not None:
                # Left padding stands before the first token of a text, but does not predict it.
                real = real_tokens(attention_mask, labels)
                labels = labels.masked_fill(~real, IGNORE_INDEX)
        else:
            last = isinstance(logits_to_keep, int)
            hidden = hidden[:, slice(-logits_to_keep, None) if last else logits_to_keep]
        chunk_size = self.config.chunk_size_lm_head if self.training else 0
        loss, logits = vocabulary_head(hidden, self.lm_head, labels, chunk_size, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
