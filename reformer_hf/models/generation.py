"""Generation: one decoding step reads one token, and the cache of the others.

The number of buckets depends on the length of a sequence, so it is planned for prompt and new
tokens together, with and without a cache: both compute the same function.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from reformer_hf.cache import ReformerCache, ReformerEncoderDecoderCache
from reformer_hf.configuration_reformer import ReformerSeq2SeqConfig
from reformer_hf.models.inputs import RESIZE_METHODS, real_tokens
from reformer_hf.ops.sequence_group import SequenceGroup

logger = logging.getLogger(__name__)

_CACHES = (None, "dynamic")


@functools.cache
def _warn_once_without_cache() -> None:
    logger.warning(
        "attention_pattern='chunk' decodes without a cache, every step reads the whole sequence: "
        "in this pattern a later token changes what earlier ones see, so a cache would compute "
        "something else; past_key_values=ReformerCache(config, approximate=True) decodes as "
        "transformers' Reformer does"
    )


class ReformerGenerationMixin(GenerationMixin):
    """transformers' ``generate()``, with the cache of :mod:`reformer_hf.cache`."""

    sequence_group: SequenceGroup | None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' ``generate``.

        Raises:
            ValueError: sequences are split over several processes, and so would be the prompt.
        """
        if self.sequence_group is not None:
            raise ValueError(
                "`generate` must not be called while sequences are split over "
                f"{self.sequence_group.size} ranks: make the model whole with "
                "`split_sequence(model, None)`"
            )
        return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache of one call of ``generate``, or plan the buckets without one.

        The hook in which models of transformers make caches of their own.

        Raises:
            ValueError: `cache_implementation` is neither unset nor "dynamic"; more tokens asked for
                than there are positions.
        """
        self._check_room(model_kwargs, max_cache_length)
        if model_kwargs.get("past_key_values") is not None:
            super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
            return
        if generation_config.cache_implementation not in _CACHES:
            raise ValueError(
                f"`cache_implementation` must be one of {list(_CACHES)}, "
                f"got {generation_config.cache_implementation!r}"
            )
        if self.config.attention_pattern != "window":
            _warn_once_without_cache()
            return
        planned = self._planned_lengths(model_kwargs, max_cache_length + 1)
        if generation_config.use_cache is False or generation_config.output_attentions:
            # Attention weights are those of whole sequences.
            model_kwargs["planned_lengths"] = planned
            return
        if isinstance(self.config, ReformerSeq2SeqConfig):
            cache = ReformerEncoderDecoderCache(self.config, planned)
        else:
            cache = ReformerCache(self.config, planned)
        model_kwargs["past_key_values"] = cache
        if generation_config.is_assistant:
            cache.activate_past_recording()

    def _prepare_generated_length(
        self, generation_config: GenerationConfig, has_default_max_length: bool, **inputs: Any
    ) -> GenerationConfig:
        """The length to generate: unless somebody asks for one, no more than there are positions.

        transformers does so for the longest source, which is not that of a target.
        """
        prepared: GenerationConfig = super()._prepare_generated_length(
            generation_config=generation_config,
            has_default_max_length=has_default_max_length,
            **inputs,
        )
        if has_default_max_length and prepared.max_new_tokens is None:
            prepared.max_length = min(prepared.max_length, self._longest()[1])
        return prepared

    def _check_room(self, model_kwargs: dict[str, Any], columns: int) -> None:
        """Refuse before the first token what would fail at a later one, with the text lost.

        Args:
            model_kwargs: what ``generate`` passes on.
            columns: columns that the model reads until the length asked for.
        """
        name, most = self._longest()
        read = columns - min(self._padding(model_kwargs) or [0])
        if read > most:
            raise ValueError(
                "`max_new_tokens` or `max_length` must leave all positions that are read in "
                f"[0, {name}={most}), got {most} to {read - 1}: ask for {read - most} tokens fewer "
                f"or see `{RESIZE_METHODS[name]}`"
            )

    def _longest(self) -> tuple[str, int]:
        """Real tokens that a generated sequence can have, and the field that says so."""
        seq2seq = isinstance(self.config, ReformerSeq2SeqConfig)
        name = "max_target_positions" if seq2seq else "max_position_embeddings"
        return name, getattr(self.config, name)

    def _padding(self, model_kwargs: dict[str, Any]) -> list[int]:
        """Padding in front of what every row generates; empty if there is no mask."""
        seq2seq = isinstance(self.config, ReformerSeq2SeqConfig)
        mask = model_kwargs.get("decoder_attention_mask" if seq2seq else "attention_mask")
        return [] if mask is None else (~real_tokens(mask, mask)).sum(dim=1).tolist()

    def _planned_lengths(self, model_kwargs: dict[str, Any], columns: int) -> int | tuple[int, ...]:
        """Real tokens of every row, or of all, when ``columns`` are full or positions run out."""
        _, most = self._longest()
        padding = self._padding(model_kwargs)
        if not padding:
            return min(columns, most)
        return tuple(max(1, min(columns - n, most)) for n in padding)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one decoding step: the new tokens, or without a cache the whole sequence.

        Args:
            input_ids: ``[B, N]`` tokens so far (after a prompt of vectors: only the new ones).
            next_sequence_length: how many of them are new; without a cache none can be skipped.
            past_key_values: the cache.
            inputs_embeds: ``[B, P, d]`` a prompt given as vectors.
            is_first_iteration: the step is the first of its call of ``generate``.
            **kwargs: everything else that ``generate`` passes on.
        """
        if past_key_values is not None:
            return super().prepare_inputs_for_generation(
                input_ids,
                next_sequence_length=next_sequence_length,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                is_first_iteration=is_first_iteration,
                **kwargs,
            )
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=None, is_first_iteration=is_first_iteration, **kwargs
        )
        # What `generate` means by it is in the cache, or in the plan.
        inputs["use_cache"] = False
        if self.config.is_encoder_decoder and "decoder_attention_mask" not in inputs:
            # What was generated is real, a padding token too: with a cache it is read as well.
            inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"])
        if inputs_embeds is not None and not self.config.is_encoder_decoder:
            vectors = inputs_embeds
            if input_ids.shape[1]:
                new = self.get_input_embeddings()(input_ids).to(inputs_embeds.dtype)
                vectors = torch.cat((inputs_embeds, new), dim=1)
            inputs["inputs_embeds"] = vectors
            inputs["input_ids"] = None
            # Those at hand count the generated tokens alone; the model counts all real tokens.
            inputs.pop("position_ids", None)
        return inputs
