"""Generation without a cache: every step reads the whole sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin


class ReformerGenerationMixin(GenerationMixin):
    """transformers' ``generate()`` for models that keep nothing between decoding steps."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of one decoding step: the whole sequence so far, whatever is asked for.

        Args:
            input_ids: ``[B, N]`` tokens so far (after a prompt of vectors: only the new ones).
            next_sequence_length: ignored; without a cache no step can skip earlier tokens.
            inputs_embeds: ``[B, P, d]`` a prompt given as vectors.
            **kwargs: everything else that ``generate`` passes on.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=None, **kwargs
        )
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
