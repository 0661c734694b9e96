"""Language modelling: predict the next token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerConfig
from reformer_hf.models.arguments import OutputKwargs, for_the_model
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.checks import as_ids, as_integers, as_labels, check_shape
from reformer_hf.models.generation import ReformerGenerationMixin
from reformer_hf.models.inputs import real_tokens
from reformer_hf.models.losses import shift_left, vocabulary_head
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.padding import real_by_labels
from reformer_hf.ops.cross_entropy import IGNORE_INDEX
from reformer_hf.ops.sequence_group import together


class CausalLMKwargs(OutputKwargs, total=False):
    """What the language model takes by name besides.

    Attributes:
        shift_labels: ``[B, N]`` int64, the token that every position is to predict, in place of
            ``labels``: where a sequence is split among processes, a shift would lose its ends. (It
            is not in the signature, for there `Trainer` takes every name with "label" in it for a
            column that the data must have.)
    """

    shift_labels: Tensor | None


class ReformerForCausalLM(ReformerGenerationMixin, ReformerPreTrainedModel):
    """A causal Reformer with a projection to the vocabulary.

    Args:
        config: the configuration; ``config.is_decoder`` becomes true.
    """

    _tied_weights_keys = {"lm_head.weight": "reformer.word_embeddings.weight"}
    token_arguments = (*ReformerPreTrainedModel.token_arguments, "labels", "shift_labels")

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
        *,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        planned_lengths: int | Sequence[int] | None = None,
        **kwargs: Unpack[CausalLMKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position.

        All arguments that are not listed here are those of :meth:`ReformerModel.forward`.

        Args:
            labels: ``[B, N]`` of any integer type, usually ``input_ids``; they are shifted here,
                and -100 is skipped. Without a mask, padding tokens at either end of a row are
                padding where they have no label.
            logits_to_keep: without labels, compute logits of only the last so many positions (0:
                all), or of the positions of a 1-D index tensor.
            **kwargs: :class:`CausalLMKwargs`.

        Returns:
            ``loss``, ``logits`` ``[B, N, V]``, ``past_key_values``, ``hidden_states``,
            ``attentions``. In training with labels and ``config.chunk_size_lm_head > 0`` the logits
            are never formed and ``None``.

        Raises:
            ValueError: an input or labels of another shape, type or range, with the name; a cache
                of another model, batch size or device.
        """
        group = self.sequence_group
        if attention_mask is None and past_key_values is None:
            attention_mask = real_by_labels(input_ids, labels, self.config.pad_token_id, group)
        out = self.reformer(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            num_hashes,
            past_key_values=past_key_values,
            use_cache=use_cache,
            planned_lengths=planned_lengths,
            **for_the_model(kwargs),
        )
        hidden = out.last_hidden_state
        shifted = kwargs.get("shift_labels")
        if shifted is not None:
            with together(group):
                check_shape(shifted, hidden.shape[:2], "shift_labels")
                labels = as_labels(shifted, self.config.vocab_size, hidden.device, "shift_labels")
        elif labels is not None:
            with together(group):
                check_shape(labels, hidden.shape[:2], "labels")
                labels = as_integers(labels, "labels")
            labels = shift_left(labels, group)
            if attention_mask is not None:
                # Left padding stands before the first token of a text, but does not predict it.
                real = real_tokens(attention_mask, labels)
                labels = labels.masked_fill(~real, IGNORE_INDEX)
        else:
            hidden = hidden[:, _kept_positions(logits_to_keep, hidden.shape[1])]
        chunk_size = self.config.chunk_size_lm_head if self.training else 0
        num_items = kwargs.get("num_items_in_batch")
        loss, logits = vocabulary_head(
            hidden, self.lm_head, labels, self.config.vocab_size, chunk_size, num_items, group
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


def _kept_positions(logits_to_keep: int | Tensor, length: int) -> slice | Tensor:
    """The index of the positions whose logits are wanted."""
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1:
            raise ValueError(
                f"`logits_to_keep` must be a number or 1-D, got shape {list(logits_to_keep.shape)}"
            )
        return as_ids(logits_to_keep, length, "logits_to_keep", "length")
    whole = isinstance(logits_to_keep, int) and not isinstance(logits_to_keep, bool)
    if not whole or logits_to_keep < 0:
        raise ValueError(
            f"`logits_to_keep` must be an integer of at least 0, got {logits_to_keep!r}"
        )
    return slice(-logits_to_keep, None)
