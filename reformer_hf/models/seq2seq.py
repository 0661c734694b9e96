"""Encoder and decoder: sequence to sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple
from typing_extensions import Unpack

from reformer_hf.configuration_reformer import ReformerSeq2SeqConfig
from reformer_hf.layers.context import ForwardContext
from reformer_hf.layers.embeddings import PositionedInputs
from reformer_hf.layers.stack import ReformerStack, StackOutput
from reformer_hf.models.arguments import OutputKwargs, for_the_model, wanted_outputs
from reformer_hf.models.base import ReformerPreTrainedModel
from reformer_hf.models.caching import find_encoder_decoder_cache
from reformer_hf.models.checks import as_labels, check_tensor
from reformer_hf.models.generation import ReformerGenerationMixin
from reformer_hf.models.inputs import InputSide, Source, prepare_inputs
from reformer_hf.models.losses import vocabulary_head
from reformer_hf.models.model import ReformerModel
from reformer_hf.models.padding import real_decoder_inputs, real_of_shifted
from reformer_hf.ops.cross_entropy import IGNORE_INDEX
from reformer_hf.ops.sequence_group import SequenceGroup, together


def shift_right(
    labels: Tensor,
    start_token_id: int,
    pad_token_id: int | None,
    group: SequenceGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Decoder inputs from labels: the start token, then all labels but the last.

    Args:
        labels: ``[B, N]`` int64; -100 where there is nothing to predict.
        start_token_id: first token of every decoder input.
        pad_token_id: what stands in for -100 (the start token if there is no padding token).
        group: with whom this rank shares the rows, of which it holds a part.

    Returns:
        Input ids ``[B, N]``, and the mask ``[B, N]`` of the real tokens among them.

    Raises:
        ValueError: labels of another shape, or none at all.
    """
    if labels.dim() != 2 or labels.shape[1] == 0:
        raise ValueError(
            f"`labels` must be [batch, length] with at least one token, got {list(labels.shape)}"
        )
    if group is not None:
        shifted = group.shift(labels, 1, start_token_id)
    else:
        start = labels.new_full((labels.shape[0], 1), start_token_id)
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
    real = shifted != IGNORE_INDEX
    pad = start_token_id if pad_token_id is None else pad_token_id
    return shifted.masked_fill(~real, pad), real


class ReformerDecoder(nn.Module):
    """Positions and a causal stack whose layers also attend to the encoder's output.

    Args:
        config: the configuration.
    """

    def __init__(self, config: ReformerSeq2SeqConfig) -> None:
        super().__init__()
        self.embeddings = PositionedInputs(
            config, config.target_position_shape(), config.max_target_positions
        )
        self.stack = ReformerStack(
            config, list(config.decoder_attn_layers), causal=True, decoder=True
        )

    def forward(
        self,
        vectors: Tensor,
        positions: Tensor,
        context: ForwardContext,
        encoder_states: Tensor,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> StackOutput:
        """Decode token vectors ``[B, N, d]`` at positions ``[B or 1, N]`` (int64).

        Cross-attention looks at the encoder's states ``[B, M, merged_size]``.
        """
        return self.stack(
            self.embeddings(vectors, positions),
            context,
            encoder_states=encoder_states,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )


class ReformerSeq2SeqPreTrainedModel(ReformerPreTrainedModel):
    """Base class of the encoder-decoder models."""

    config: ReformerSeq2SeqConfig
    config_class = ReformerSeq2SeqConfig
    base_model_prefix = "model"
    target_arguments = (
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_position_ids",
        "decoder_inputs_embeds",
        "labels",
    )

    @property
    def _target_group(self) -> SequenceGroup | None:
        """Who has the other tokens of the targets; ``None``: nobody."""
        return self.sequence_group if self.target_is_split else None

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The encoder, a :class:`ReformerModel`."""
        return self.base_model.encoder

    def get_decoder(self) -> nn.Module:
        """The decoder."""
        return self.base_model.decoder

    def resize_target_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest target sequence; positions that remain keep their embeddings.

        Raises:
            ValueError: the new number is not a positive integer.
        """
        self.base_model.resize_target_position_embeddings(new_num_position_embeddings)


def _as_output(encoder_outputs: Any) -> BaseModelOutput:
    """An encoder's output that was computed before, by its names."""
    if isinstance(encoder_outputs, list | tuple):
        encoder_outputs = BaseModelOutput(*encoder_outputs)
    if not isinstance(getattr(encoder_outputs, "last_hidden_state", None), Tensor):
        raise ValueError(
            "`encoder_outputs` must be the output of an encoder, or a tuple that begins with its "
            f"last hidden state, got {type(encoder_outputs).__name__}"
        )
    return encoder_outputs


class ReformerSeq2SeqModel(ReformerSeq2SeqPreTrainedModel):
    """The encoder-decoder without a head.

    Lengths of source and target are independent of one another. The token embedding is shared.

    Args:
        config: the configuration.
    """

    def __init__(self, config: ReformerSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = ReformerModel(config, causal=False)
        self.decoder = ReformerDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of both encoder and decoder."""
        return self.encoder.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.encoder.word_embeddings = value

    def get_position_embeddings(self) -> nn.Module:
        """The encoder's table of position embeddings."""
        return self.encoder.get_position_embeddings()

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest source sequence; positions that remain keep their embeddings."""
        self.encoder.resize_position_embeddings(new_num_position_embeddings)

    def resize_target_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Change the longest target sequence; positions that remain keep their embeddings."""
        shape = self._resize_positions(self.decoder.embeddings, new_num_position_embeddings)
        self.config.decoder_axial_pos_shape = shape
        self.config.max_target_positions = new_num_position_embeddings

    def _target_side(self) -> InputSide:
        return InputSide(
            self.config,
            self.training,
            self.encoder.word_embeddings,
            self.decoder.embeddings,
            prefix="decoder_",
            limit_name="max_target_positions",
            group=self.sequence_group,
            split=self.target_is_split,
            rotary=self.decoder.stack.rotary_dtype,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        *,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        planned_lengths: int | Sequence[int] | None = None,
        **kwargs: Unpack[OutputKwargs],
    ) -> Seq2SeqModelOutput:
        """Encode the source and decode the target.

        ``num_hashes`` and the source, from ``input_ids`` ``[B, M]`` to ``inputs_embeds``, are what
        they are in :meth:`ReformerModel.forward`; so are the arguments of the target, ``decoder_*``
        ``[B, N]``, and those of its cache. Without a cache and a mask, padding tokens at the end of
        rows of ``decoder_input_ids`` are padding (outside training, if another row goes on).

        Args:
            encoder_outputs: the encoder's output, if it was computed before.
            past_key_values: a :class:`~reformer_hf.ReformerEncoderDecoderCache`. With the keys and
                values of the source in it, neither the source nor its encoding is read again.
            use_cache: return a cache of source and target, as ``past_key_values``.
            planned_lengths: tokens that the target of each row, or of all, will have in the end.
            **kwargs: :class:`~reformer_hf.models.arguments.OutputKwargs`.

        Returns:
            ``last_hidden_state`` ``[B, N, d]`` (twice the features with ``stream_merge="concat"``),
            ``past_key_values`` and the states of encoder and decoder.

        Raises:
            ValueError: no decoder input, arguments that do not fit together, or one of another
                shape, type or range, with its name; a cache of another model, batch size or device.
        """
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            raise ValueError(
                "one of `decoder_input_ids`, `decoder_inputs_embeds` and, in a model with a head, "
                "`labels` must be given, got none of them"
            )
        outputs = wanted_outputs(kwargs, self.config)
        if encoder_outputs is None:
            source = (input_ids, attention_mask, position_ids, inputs_embeds)
            encoded = self.encoder(*source, num_hashes, return_dict=True, **outputs)
        else:
            encoded = _as_output(encoder_outputs)
        states = encoded.last_hidden_state
        whole = past_key_values is None and not use_cache
        if decoder_attention_mask is None and whole:
            decoder_attention_mask = real_decoder_inputs(
                decoder_input_ids, self.config.pad_token_id, self.training, self._target_group
            )
        pair = find_encoder_decoder_cache(past_key_values, use_cache, self.config, planned_lengths)
        cache = None if pair is None else pair.self_attention_cache
        inputs = prepare_inputs(
            self._target_side(),
            decoder_input_ids,
            decoder_inputs_embeds,
            decoder_attention_mask,
            decoder_position_ids,
            cache,
            num_hashes,
            planned_lengths,
            Source(states, attention_mask, pair),
        )
        with inputs.context.randomness(inputs.vectors.device):
            out = self.decoder(inputs.vectors, inputs.positions, inputs.context, states, **outputs)
        if cache is not None:
            cache.close()
        return Seq2SeqModelOutput(
            last_hidden_state=out.last_hidden_state,
            past_key_values=pair,
            decoder_hidden_states=out.hidden_states,
            decoder_attentions=out.attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=states,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class ReformerForConditionalGeneration(ReformerGenerationMixin, ReformerSeq2SeqPreTrainedModel):
    """The encoder-decoder with a projection to the vocabulary: summarization, translation, ...

    Args:
        config: the configuration.
    """

    _tied_weights_keys = {"lm_head.weight": "model.encoder.word_embeddings.weight"}

    def __init__(self, config: ReformerSeq2SeqConfig) -> None:
        super().__init__(config)
        self.model = ReformerSeq2SeqModel(config)
        self.lm_head = nn.Linear(config.merged_size(), config.vocab_size)
        self.post_init()

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs that predict ``labels`` ``[B, N]``, for data collators."""
        config = self.config
        return shift_right(labels, config.decoder_start_token_id, config.pad_token_id)[0]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor, ...] | None = None,
        position_ids: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_hashes: int | None = None,
        *,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        planned_lengths: int | Sequence[int] | None = None,
        **kwargs: Unpack[OutputKwargs],
    ) -> Seq2SeqLMOutput:
        """Predict the target.

        All arguments that are not listed here are those of :meth:`ReformerSeq2SeqModel.forward`.
        Decoder inputs and their mask are made from the labels if they are not given. Labels also
        tell what is padding in decoder inputs that a collator has made of them.

        Args:
            labels: ``[B, N]`` target tokens of any integer type, -100 where there is nothing to
                predict.
            **kwargs: :class:`~reformer_hf.models.arguments.OutputKwargs`.

        Returns:
            ``loss``, ``logits`` ``[B, N, V]``, ``past_key_values`` and the states of encoder and
            decoder. In training with labels and ``config.chunk_size_lm_head > 0`` the logits are
            never formed and ``None``.

        Raises:
            ValueError: neither labels nor decoder inputs; labels of another shape, type or range;
                and whatever the model without a head refuses.
        """
        config = self.config
        if labels is not None and decoder_inputs_embeds is None:
            with together(self.sequence_group):
                check_tensor(labels, "labels")
                tokens = (decoder_input_ids, input_ids, inputs_embeds)
                device = next((x for x in tokens if isinstance(x, Tensor)), labels).device
                # Before they become decoder inputs, whose error would name what nobody gave.
                labels = as_labels(labels, config.vocab_size, device)
            group = self._target_group
            shifted, real = shift_right(
                labels, config.decoder_start_token_id, config.pad_token_id, group
            )
            unknown = decoder_attention_mask is None
            if decoder_input_ids is None:
                decoder_input_ids = shifted
                decoder_attention_mask = real if unknown else decoder_attention_mask
            elif unknown and past_key_values is None:
                decoder_attention_mask = real_of_shifted(decoder_input_ids, shifted, real, group)
        out = self.model(
            input_ids,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            position_ids,
            decoder_position_ids,
            inputs_embeds,
            decoder_inputs_embeds,
            num_hashes,
            past_key_values=past_key_values,
            use_cache=use_cache,
            planned_lengths=planned_lengths,
            **for_the_model(kwargs),
        )
        chunk_size = config.chunk_size_lm_head if self.training else 0
        num_items = kwargs.get("num_items_in_batch")
        loss, logits = vocabulary_head(
            *(out.last_hidden_state, self.lm_head, labels, config.vocab_size),
            *(chunk_size, num_items, self._target_group),
        )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            decoder_hidden_states=out.decoder_hidden_states,
            decoder_attentions=out.decoder_attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=out.encoder_last_hidden_state,
            encoder_hidden_states=out.encoder_hidden_states,
            encoder_attentions=out.encoder_attentions,
        )
