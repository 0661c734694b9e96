"""Generation without a cache of the decoder: every step reads all that was generated so far.

The source is read once: its encoding, and what every layer's cross-attention makes of it, stay with
the encoder's output for as long as one call of ``generate`` lasts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

# An attribute, not an entry: nothing that reads the output's fields sees it.
_CROSS_MEMORY = "_reformer_cross_memory"


class ReformerGenerationMixin(GenerationMixin):
    """transformers' ``generate()`` for models that keep nothing between decoding steps."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one decoding step: the whole sequence so far, whatever is asked for.

        Args:
            input_ids: ``[B, N]`` tokens so far (after a prompt of vectors: only the new ones).
            next_sequence_length: ignored; without a cache no step can skip earlier tokens.
            inputs_embeds: ``[B, P, d]`` a prompt given as vectors.
            is_first_iteration: the step is the first of its call of ``generate``.
            **kwargs: everything else that ``generate`` passes on.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=None,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        encoder_outputs = inputs.get("encoder_outputs")
        if isinstance(encoder_outputs, BaseModelOutput):
            if is_first_iteration or not hasattr(encoder_outputs, _CROSS_MEMORY):
                setattr(encoder_outputs, _CROSS_MEMORY, {})
            # Passed on by name: an encoder's output that is used again later, with other weights
            # perhaps, brings nothing along.
            inputs["cross_memory"] = getattr(encoder_outputs, _CROSS_MEMORY)
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
